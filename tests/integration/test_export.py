"""`wmtp export` from the model folder that training writes: what is there afterwards, and what is printed."""

import json
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from shipping_sources import SHIPPING, write_source
from transformers import AutoModelForCausalLM, AutoTokenizer

from wmtp_core import UserError
from wmtp_models import build_policy, load_policy, load_tokenizer, load_wmtp
from wmtp_models.formats import hf
from wmtp_train.commands import export as command

ROOT = Path(__file__).parents[2]
TOKENS = torch.arange(20).view(2, 10)


@pytest.fixture
def models(tiny_home: Path, tmp_path: Path, tiny_llama: dict[str, object]) -> Callable[..., Path]:
    """A folder as training writes it: a policy of a head kind with its tokenizer."""

    def make(head_kind: str, with_tokenizer: bool = True, **options: object) -> Path:
        folder = tmp_path / head_kind
        tokenizer = load_tokenizer(tiny_home / "tokenizer")
        policy = build_policy(tiny_llama, len(tokenizer), 3, head_kind=head_kind, **options)
        torch.manual_seed(5)
        for parameter in policy.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        policy.save_pretrained(folder)
        if with_tokenizer:
            tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the script in this process: what it printed."""

    def run(model: Path, form: str, output: Path) -> str:
        arguments = ["wmtp export", "--model", str(model), "--format", form, "--output", str(output)]
        monkeypatch.setattr("sys.argv", arguments)
        capsys.readouterr()
        command.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def small_files() -> Callable[[], AbstractContextManager[None]]:
    """Makes the system refuse files of more than 8 kB, as a full disk does."""

    @contextmanager
    def limited() -> Iterator[None]:
        limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)

    return limited


def test_hf_from_the_shell(models: Callable[..., Path], tmp_path: Path, call: Callable[..., object]) -> None:
    folder = models("layer", value_head=True)
    done = call("launch/export.py", "--model", folder, "--format", "hf", "--output", tmp_path / "plain")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 3), done.stderr
    assert f"{tmp_path}/plain: read back, " in done.stdout
    assert "the logits of head 0 are equal to the bit in LlamaForCausalLM" in done.stdout
    assert "no place for it: heads 1 to 2" in done.stdout
    assert "no place for it: the value head" in done.stdout
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert torch.equal(plain(TOKENS).logits, load_policy(folder, 3).unwrap()(TOKENS).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "plain").eos_token == "<eos>"


def test_the_model_card_says_what_the_run_left_on_record(models, export, tmp_path: Path) -> None:
    folder = models("sequential")
    export(folder, "generic", tmp_path / "alone")
    card = (tmp_path / "alone" / "README.md").read_text()
    assert card.startswith("# llama with 3 heads for future tokens\n")
    assert "of the kind `sequential`, one module for all depths" in card
    assert "is not on record" in card
    assert '"num_speculative_tokens": 2}' in card, "as many as there are heads to draft"
    settings = {"algo": "rho1-wmtp", "steps": 7, "model": {"source": "some/base"}, "data": {"train": ["a.jsonl"]}}
    (folder.parent / "settings.json").write_text(json.dumps(settings))
    metrics = {"clean/ce/head_0": 3.0, "clean/acceptance/head_1": 0.5, "clean/tokens_per_forward": 1.5}
    (folder.parent / "evaluation.json").write_text(json.dumps(metrics))
    export(folder, "generic", tmp_path / "of_a_run")
    card = (tmp_path / "of_a_run" / "README.md").read_text()
    assert "| base model | some/base |" in card
    assert "| algorithm | `rho1-wmtp`, 7 steps |" in card
    assert "| held-out set | head 1 | tokens per forward |\n|---|--:|--:|\n| clean | 0.500 | 1.500 |" in card
    (folder.parent / "settings.json").write_text("{")
    with pytest.raises(UserError, match=r"settings\.json cannot be read for the model card"):
        export(folder, "generic", tmp_path / "broken")
    assert not (tmp_path / "broken").exists()


def test_consolidated_and_on_to_wmtp_is_where_one_began(models, export, tmp_path: Path) -> None:
    folder = models("layer")
    assert "the logits of 3 heads are equal to the bit" in export(folder, "consolidated", tmp_path / "published")
    export(tmp_path / "published", "wmtp", tmp_path / "again")
    before, after = load_wmtp(folder).state_dict(), load_wmtp(tmp_path / "again").state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert load_tokenizer(tmp_path / "again").get_vocab() == load_tokenizer(folder).get_vocab()


def test_medusa(models, export, tmp_path: Path) -> None:
    for kind in ("mlp", "linear"):
        printed = export(models(kind), "medusa", tmp_path / f"{kind}-medusa")
        assert "the logits of heads 1 to 2, computed as vLLM does" in printed
        assert "no place for it: the trunk and head 0" in printed
        assert json.loads((tmp_path / f"{kind}-medusa" / "config.json").read_text())["num_heads"] == 2


def test_a_model_without_tokenizer_says_so(models, export, tmp_path: Path) -> None:
    folder = models("layer", with_tokenizer=False)
    assert f"no tokenizer in {folder}, so there is none in {tmp_path}/out" in export(folder, "wmtp", tmp_path / "out")


def test_a_format_that_cannot_hold_the_heads_leaves_nothing(models, export, tmp_path: Path) -> None:
    for kind, form in (("layer", "medusa"), ("mlp", "consolidated"), ("linear", "consolidated")):
        with pytest.raises(UserError, match=rf"{form} holds .*: export to wmtp"):
            export(models(kind), form, tmp_path / "out" / kind)
        assert list((tmp_path / "out").iterdir()) == []


def test_an_export_that_reads_back_otherwise_leaves_nothing(
    models, export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = hf.save

    def save(policy, folder):
        with torch.no_grad():
            weight = policy.causal_lm.model.norm.weight
            weight[0] += 1
            real(policy, folder)
            weight[0] -= 1

    monkeypatch.setattr(hf, "save", save)
    folder = models("layer")
    with pytest.raises(UserError, match=r"norm.weight in .* differ .*nothing was kept"):
        export(folder, "hf", tmp_path / "out" / "plain")
    assert list((tmp_path / "out").iterdir()) == []


def test_nothing_is_written_over(models, export, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UserError, match=r"mine exists already: choose another folder"):
        export(models("layer"), "hf", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_plain_model_has_nothing_to_export(export, tiny_home: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a plain llama without heads: give a folder that training wrote"):
        export(tiny_home / "reference", "hf", tmp_path / "out")


def test_an_output_that_cannot_be_written(models, export, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--output .*/file/out cannot be written"):
        export(models("layer"), "hf", tmp_path / "file" / "out")


@pytest.mark.parametrize("form", ["hf", "wmtp", "medusa", "consolidated"])
def test_a_full_disk_is_one_line_and_leaves_nothing(form: str, models, export, tmp_path: Path, small_files) -> None:
    folder = models("mlp" if form == "medusa" else "layer", with_tokenizer=False)
    with small_files(), pytest.raises(UserError, match=r"--output .*out/full cannot be written: ") as caught:
        export(folder, form, tmp_path / "out" / "full")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_stop_tokens_go_along(models, export, tmp_path: Path) -> None:
    folder = models("layer")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"generation": {"eos_token_id": [2, 7, 9]}}))
    export(folder, "hf", tmp_path / "plain")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "plain").generation_config.eos_token_id == [2, 7, 9]
    assert "no place for it: the settings of generation_config.json" in export(folder, "consolidated", tmp_path / "c")


def test_an_unknown_format_is_refused_in_one_line(export, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"command line: .*invalid choice: 'onnx'") as caught:
        export(tmp_path, "onnx", tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_native_model_is_handed_back(models, export, tmp_path: Path) -> None:
    """And its plain export says what it drops."""
    write_source(SHIPPING["mellum dense"], "mellum", tmp_path / "source")
    load_policy(tmp_path / "source", 3, head_kind="sequential").save_pretrained(tmp_path / "trained")
    assert "the logits of 3 heads are equal to the bit" in export(tmp_path / "trained", "native", tmp_path / "out")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("source", "out"))
    assert before.keys() == after.keys()
    dropped = "no place for it: the modules that its source shipped, which the format native keeps"
    assert dropped in export(tmp_path / "trained", "hf", tmp_path / "plain")
    with pytest.raises(UserError, match="this model's are new: export to wmtp"):
        export(models("sequential"), "native", tmp_path / "new")
