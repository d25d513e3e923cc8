import json
from pathlib import Path
from typing import Any

import pytest
import torch

import bench
import profile_step
from benchmarks import loss_benchmark, step_benchmark
from benchmarks.equality import WrongResult
from benchmarks.loss_variants import RHO1, LossVariant
from benchmarks.parts import PARTS
from benchmarks.problems import LossShape
from benchmarks.step_shape import StepShape
from benchmarks.training import STEP_VARIANTS


@pytest.fixture(autouse=True)
def small_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_benchmark, "CHECKED", LossShape(300, 48, 16))
    monkeypatch.setattr(step_benchmark, "CHECKED", StepShape(300, batch=2, length=24, hidden_size=32, layers=2))


@pytest.mark.slow
def test_a_quick_run_writes_what_it_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--output", str(tmp_path / "out"), "--quick"]) == 0
    printed = capsys.readouterr().out
    record: dict[str, Any] = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert record["command"] == f"python tools/bench.py --output {tmp_path / 'out'} --quick"
    assert record["command"] in printed
    assert record["dtype"] == "float32"
    assert record["machine"]["threads"] == torch.get_num_threads()
    assert record["versions"]["torch"] == torch.__version__
    loss, step = record["comparisons"]
    assert (loss["operation"], step["operation"]) == ("loss", "step")
    assert list(step["measurements"]) == list(STEP_VARIANTS)
    assert {"naive", "fused, no selection", "ours, rho1", "ours, rho1, no hint"} <= loss["measurements"].keys()
    for comparison in (loss, step):
        for name, measurement in comparison["measurements"].items():
            assert f"| {name} | " in printed
            assert [sample.keys() for sample in measurement["samples"]] == [{"cpu", "wall"}] * 2
            assert measurement["error"] < 2e-4
    for name, reason in record["skipped"].items():
        assert f"left out: {name}: {reason}" in printed
    assert (tmp_path / "out" / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_a_wrong_variant_is_an_error_and_a_wrong_peer_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="none") * 1.01

    right, skipped = loss_benchmark.loss_variants(torch.device("cpu"))
    monkeypatch.setattr(loss_benchmark, "why_not_measured", lambda _device: "not here")

    def offer(is_peer: bool) -> None:
        variants = {"naive": right["naive"], "other": LossVariant("other", RHO1, wrong, is_peer=is_peer)}
        monkeypatch.setattr(loss_benchmark, "loss_variants", lambda _device: (variants, dict(skipped)))

    offer(is_peer=True)
    arguments = ["--output", str(tmp_path), "--quick", "--only", "loss"]
    assert bench.main(arguments) == 0
    (comparison,) = json.loads((tmp_path / "bench.json").read_text())["comparisons"]
    assert list(comparison["measurements"]) == ["naive"]
    assert "left out: other: WrongResult: other: " in capsys.readouterr().out
    offer(is_peer=False)
    with pytest.raises(WrongResult, match="other: "):
        bench.main(arguments)


def test_a_quick_profile_writes_the_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile_step.main(["--output", str(tmp_path), "--quick"]) == 0
    record = json.loads((tmp_path / "profile.json").read_text())
    assert list(record["seconds"]) == list(STEP_VARIANTS)
    assert all(list(parts) == list(PARTS) for parts in record["seconds"].values())
    printed = capsys.readouterr().out
    assert all(f"| {part} | " in printed for part in PARTS)
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("tool", [bench, profile_step])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--output", "{file}"], "--output {file}: cannot be made (File exists); name another folder"),
        pytest.param(
            ["--output", "{file}.d", "--device", "cuda"],
            "--device cuda: torch sees no CUDA device here; use --device cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
    ],
)
def test_what_the_user_can_fix_is_one_line(
    tool: Any, more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert tool.main([argument.format(file=file) for argument in more]) == 2
    assert capsys.readouterr().err == f"error: {message.format(file=file)}\n"
