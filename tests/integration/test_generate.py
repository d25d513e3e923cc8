"""`wmtp generate`: text on stdout, metrics on stderr, errors in one line."""

import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from wmtp_models import MtpForCausalLM, build_policy, load_causal_lm, load_tokenizer
from wmtp_train.commands import generate as command

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def save_policy(tiny_home: Path, tiny_llama: dict, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Saves a policy of random weights, large enough that its text is no single token, with its tokenizer."""

    def save(head_kind: str) -> Path:
        folder = tmp_path_factory.mktemp("model")
        tokenizer = AutoTokenizer.from_pretrained(tiny_home / "tokenizer")
        config = {**tiny_llama, "initializer_range": 0.3, "tie_word_embeddings": False}
        build_policy(config, len(tokenizer), horizon=3, head_kind=head_kind).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="module")
def model(save_policy: Callable[[str], Path]) -> Path:
    """Of the default kind of heads."""
    return save_policy("layer")


@pytest.fixture
def generate(model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Runs the script in this process: exit code, stdout, stderr."""
    # `run` ends the process group, and the one that the tests of a session share has to stay.
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: False)

    def call(*arguments: object, source: Path = model, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["wmtp generate", "--model", str(source), *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = 0
        try:
            command.start()
        except SystemExit as end:
            code = int(end.code)
        return code, *capfd.readouterr()

    return call


def plain_text(model: Path, prompt: str, tokens: int) -> str:
    """What transformers makes of a prompt alone."""
    tokenizer = load_tokenizer(model)
    input_ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    plain = load_causal_lm(model).eval()
    row = plain.generate(
        input_ids, do_sample=False, max_new_tokens=tokens, eos_token_id=tokenizer.eos_token_id, pad_token_id=0
    )
    return prompt + tokenizer.decode(row[0, input_ids.shape[1] :], skip_special_tokens=True)


def test_greedy_text_of_one_prompt(generate: Call, model: Path) -> None:
    code, text, metrics = generate("--prompt", "def f(", "--max-new-tokens", 20)
    assert code == 0
    assert text == plain_text(model, "def f(", 20) + "\n"
    assert re.fullmatch(r"20 tokens, \d\.\d\d a forward; drafts accepted: head 1 \d+%, head 2 \d+%\n", metrics)


def test_a_text_ends_at_the_models_own_stop_tokens(generate: Call, model: Path, tmp_path: Path) -> None:
    """Which a tokenizer, of one EOS, does not know."""
    tokenizer, folder = load_tokenizer(model), tmp_path / "stopping"
    prompt = tokenizer("def f(")["input_ids"]
    row = load_causal_lm(model).eval().generate(torch.tensor([prompt]), max_new_tokens=20, pad_token_id=0)[0].tolist()
    stop = row[len(prompt) + 5]
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["generation"] = {"eos_token_id": [len(tokenizer) - 1, stop]}
    (folder / "config.json").write_text(json.dumps(config))
    expected = row[: row.index(stop, len(prompt)) + 1]
    code, text, _ = generate("--prompt", "def f(", "--max-new-tokens", 20, source=folder)
    assert (code, text) == (0, tokenizer.decode(expected, skip_special_tokens=True) + "\n")
    assert len(text) < len(generate("--prompt", "def f(", "--max-new-tokens", 20)[1])


@pytest.mark.parametrize("head_kind", ["mlp", "linear"])
def test_heads_of_other_kinds(head_kind: str, generate: Call, save_policy: Callable[[str], Path]) -> None:
    folder = save_policy(head_kind)
    code, text, metrics = generate("--prompt", "def f(", "--max-new-tokens", 20, source=folder)
    assert code == 0
    assert text == plain_text(folder, "def f(", 20) + "\n"
    assert "drafts accepted: head 1" in metrics


@pytest.mark.parametrize("by", ["file", "stdin"])
def test_a_batch_is_printed_in_order(by: str, generate: Call, model: Path, tmp_path: Path) -> None:
    prompts = ["def f(", "return é", "a"]
    lines = "\n".join(prompts)
    (tmp_path / "prompts.txt").write_text(lines)
    source = ("--prompts", tmp_path / "prompts.txt") if by == "file" else ()
    code, text, _ = generate(*source, "--max-new-tokens", 12, stdin="" if by == "file" else lines + "\n")
    assert code == 0
    assert text == "".join(plain_text(model, prompt, 12) + "\n" for prompt in prompts)


def test_text_is_printed_as_it_comes(generate: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[str] = []
    monkeypatch.setattr("builtins.print", lambda text, **_: pieces.append(text))
    assert generate("--prompt", "def f(", "--max-new-tokens", 20)[0] == 0
    assert pieces[0].startswith("def f(")
    assert len([piece for piece in pieces[:-1] if piece]) > 5


def test_samples_depend_on_the_seed_alone(generate: Call) -> None:
    def text(*arguments: object) -> str:
        code, text, _ = generate("--prompt", "def f(", "--max-new-tokens", 12, *arguments)
        assert code == 0
        return text

    first = text("--temperature", 0.9, "--top-k", 50, "--top-p", 0.95, "--seed", 1)
    assert first == text("--temperature", 0.9, "--top-k", 50, "--top-p", 0.95, "--seed", 1)
    assert first != text("--temperature", 0.9, "--top-k", 50, "--top-p", 0.95, "--seed", 2)
    assert text("--top-k", 1) == text()


@pytest.mark.slow
def test_compare_times_both_ways(generate: Call) -> None:
    code, _, metrics = generate("--prompt", "def f(", "--max-new-tokens", 20, "--compare")
    assert code == 0
    found = re.search(r"with the heads ([\d.]+) tokens/s, plainly ([\d.]+) tokens/s: ratio ([\d.]+)", metrics)
    heads, plain, ratio = map(float, found.groups())
    assert heads / plain == pytest.approx(ratio, abs=0.02)
    assert metrics.endswith("each, interleaved); the same text\n")


def test_half_precision_settles_near_ties_unless_told_not_to(generate: Call) -> None:
    assert "settled near-ties" in generate("--prompt", "def f(", "--dtype", "bfloat16", "--max-new-tokens", 40)[2]
    loose = generate("--prompt", "def f(", "--dtype", "bfloat16", "--max-new-tokens", 40, "--no-exact")
    assert loose[0] == 0
    assert "settled" not in loose[2]


@pytest.mark.parametrize(
    ("arguments", "stdin", "said"),
    [
        (["--prompt", ""], "", "prompt 0 is empty: give it at least one token to go on from"),
        ([], "a\n\nb\n", "prompt 1 is empty"),
        ([], "", "there is no prompt: give at least one"),
        (
            ["--prompt", "xyz " * 80],
            "",
            r"prompt 0 has \d+ tokens, and the model's context is 64.*: shorten the prompt",
        ),
        (["--prompt", "a", "--max-new-tokens", "0"], "", "max_new_tokens is 0: it must be at least 1"),
        (["--prompt", "a", "--temperature", "0"], "", "temperature is 0.0: it must be above 0"),
        (["--prompt", "a", "--max-new-tokens", "x"], "", "command line: argument --max-new-tokens: invalid int value"),
        (["--promt", "a"], "", "command line: unrecognized arguments: --promt a; --help lists the options"),
        (["--prompts", "absent.txt"], "", r"prompts from absent.txt: .*No such file.*; give a file of UTF-8 text"),
    ],
)
def test_errors_are_one_line(arguments: list[str], stdin: str, said: str, generate: Call) -> None:
    code, text, error = generate(*arguments, stdin=stdin)
    assert code == 2
    assert text == ""
    assert re.match(f"error: {said}", error)
    assert error.count("\n") == 1


def test_a_model_without_tokenizer_or_heads_is_refused(generate: Call, model: Path, tmp_path: Path) -> None:
    MtpForCausalLM.from_pretrained(model).save_pretrained(tmp_path / "bare")
    code, _, error = generate("--prompt", "a", source=tmp_path / "bare")
    assert code == 2
    assert error == f"error: no tokenizer in {tmp_path / 'bare'}: put one there with save_pretrained\n"
    load_causal_lm(model, torch.float32).save_pretrained(tmp_path / "plain")
    code, _, error = generate("--prompt", "a", source=tmp_path / "plain")
    assert code == 2
    assert error.startswith(f"error: {tmp_path / 'plain'} is a plain llama without heads")
    code, _, error = generate("--prompt", "a", source=tmp_path / "absent")
    assert (code, error) == (2, f"error: there is no folder {tmp_path / 'absent'}: check the path\n")


@pytest.mark.slow
def test_a_person_calls_it(call: Callable, model: Path) -> None:
    done = call("launch/generate.py", "--model", model, "--prompt", "def f(", "--max-new-tokens", 12)
    assert done.returncode == 0, done.stderr
    assert done.stdout == plain_text(model, "def f(", 12) + "\n"
    assert done.stderr.count("\n") == 1, "the metrics and nothing else"
