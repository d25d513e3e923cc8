from pathlib import Path
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter

from wmtp_core.errors import UserError
from wmtp_lab.report.runs import read_runs


def test_a_run_is_read_as_it_was_written(make_run: Any) -> None:
    (run,) = read_runs([make_run()])
    assert (run.name, run.algo, run.steps) == ("run", "rho1-wmtp", 30)
    assert list(run.heads("ce")) == [0, 1, 2]
    assert run.heads("ce")[1].steps == [10, 20, 30]
    assert run.heads("ce")[1].values == [8.5, 7.0, 5.5]
    assert run.evaluation_sets == ["clean", "noisy"]
    assert run.final_heads("noisy/clean_ce") == {0: 4.5, 1: 6.0, 2: 7.5}
    assert run.final("excess_auc") == {"noisy": 0.79}
    assert run.noise_kinds == {"log", "base64"}
    assert set(run.passages) == {"clean", "noisy"}


def test_what_a_resumed_run_wrote_twice_counts_once(make_run: Any) -> None:
    folder = make_run(scalars={"ce/head_0": [(10, 8.0), (20, 7.0), (30, 99.0)]})
    (first,) = (folder / "tensorboard").iterdir()
    first.rename(first.with_name("events.out.tfevents.0000000001.first"))  # TensorBoard reads in the order of the names
    with SummaryWriter(str(folder / "tensorboard"), purge_step=21, filename_suffix=".later") as writer:
        writer.add_scalar("ce/head_0", 6.0, 30)
    (run,) = read_runs([folder])
    assert run.scalars["ce/head_0"] == ([10, 20, 30], [8.0, 7.0, 6.0])


def test_names_tell_runs_apart(make_run: Any) -> None:
    assert [run.name for run in read_runs([make_run("a/x"), make_run("b/x")])] == ["a/x", "b/x"]
    with pytest.raises(UserError, match="named twice"):
        read_runs([make_run("c"), make_run("c")])


def test_what_is_no_finished_run_is_named(make_run: Any, tmp_path: Path) -> None:
    def error_after(name: str, **changes: str | None) -> str:
        folder = make_run(name)
        for file, content in changes.items():
            path = folder / f"{file}.json"
            path.unlink() if content is None else path.write_text(content)
        with pytest.raises(UserError) as error:
            read_runs([folder])
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "settings.json: no such file" in error_after("a", settings=None)
    assert "settings.json: names no algo" in error_after("b", settings="{}")
    assert "evaluation.json: is not JSON" in error_after("c", evaluation='{"a": ')
    assert "evaluation.json: holds a list" in error_after("d", evaluation="[]")
    assert "clean/ce/head_0 is 'x', not a number" in error_after("e", evaluation='{"clean/ce/head_0": "x"}')
    assert "passages.json: no such file" in error_after("f", passages=None)
    assert "passages.json: set noisy: needs tokens" in error_after("g", passages='{"noisy": {"tokens": []}}')
    with pytest.raises(UserError, match="no such folder"):
        read_runs([tmp_path / "missing"])
    with pytest.raises(UserError, match="hold no losses"):
        read_runs([make_run("h", scalars={"other": [(1, 1.0)]})])
    folder = make_run("i")
    for file in (folder / "tensorboard").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="holds no TensorBoard events"):
        read_runs([folder])
