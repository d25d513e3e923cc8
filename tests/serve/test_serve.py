"""Exports of trained models in a real vLLM and in transformers' `use_mtp`: the trunk's text, in fewer forwards.

`make test-serve` makes vLLM's environment and the models. The table of what was measured goes to `runs/serve/table.md`.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import HOME, PROMPT_TOKENS, PROMPTS, VENV, export, model, prompts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.server,
    pytest.mark.skipif(not VENV.is_dir(), reason="no .venv-serve; `make test-serve` makes it"),
]
TOKENS = 64
LEAST = 2.2
LEAST_OF_ONE_DEPTH = 1.4  # exaone is a single module in transformers, which applies it once
SERVED = [
    ("llama", "mimo-drafter"),
    ("llama", "glm"),
    ("qwen2", "mimo-drafter"),
    ("qwen2", "glm"),
    ("qwen3", "exaone"),
    ("qwen3", "glm"),
    ("qwen3-qwen2-block", "mimo-drafter"),
]


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """Rows of the table, which is written once all tests of it have run."""
    rows: list[str] = []
    yield rows
    heading = "| trunk | format | decoded by | tokens a forward | accepted at depth 1 | 2 | 3 | same text |"
    lines = [heading, "|---|---|---|--:|--:|--:|--:|--:|", *rows]
    (HOME / "table.md").write_text("\n".join(lines) + "\n")
    print("\n" + "\n".join(lines))


@pytest.fixture(scope="module")
def texts() -> dict[str, list[str]]:
    """By model, what the plain trunk says in the same server."""
    return {}


@pytest.fixture(scope="module")
def ours(table: list[str]) -> Callable[[str], list[float]]:
    """The acceptance of a model at each depth in our own decoder, on the same prompts."""
    from wmtp_models import generate, load_wmtp

    @functools.cache
    def measure(toy: str) -> list[float]:
        result = generate(load_wmtp(model(toy)).eval(), prompts=prompts(), max_new_tokens=TOKENS)
        table.append(row(toy, "wmtp", "launch/generate.py", result.tokens_per_forward, result.acceptance, ""))
        return result.acceptance

    return measure


def row(toy: str, form: str, by: str, per_forward: float, acceptance: list[float], same: str) -> str:
    shares = " | ".join(f"{share:.2f}" for share in acceptance)
    return f"| {toy} | `{form}` | {by} | {per_forward:.2f} | {shares} | {same} |"


def test_there_is_something_to_say() -> None:
    model("llama")
    assert [len(tokens) for tokens in prompts()] == [PROMPT_TOKENS] * PROMPTS


@pytest.mark.parametrize(("toy", "form"), SERVED)
def test_vllm_says_what_the_trunk_says(
    toy: str,
    form: str,
    serve: Callable[..., Any],
    texts: dict[str, list[str]],
    ours: Callable[[str], list[float]],
    table: list[str],
) -> None:
    expected, trunk = ours(toy), export(toy, "hf")
    if toy not in texts:
        with serve(trunk) as server:
            texts[toy] = server.complete(prompts(), TOKENS)
    with serve(export(toy, form), trunk) as server:
        drafted = server.complete(prompts(), TOKENS)
        per_forward, acceptance = server.acceptance()
    same = sum(a == b for a, b in zip(drafted, texts[toy], strict=True))
    table.append(row(toy, form, "vLLM 0.32.0", per_forward, acceptance, f"{same} of {PROMPTS}"))
    assert same == PROMPTS
    assert per_forward >= LEAST
    assert min(acceptance) > 0
    # The server shares one cache among the depths of a module, and we give each its own.
    assert acceptance == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("toy", "form"), [("llama", "generic"), ("qwen2", "generic"), ("qwen3", "generic"), ("qwen3", "exaone")]
)
def test_transformers_says_what_the_trunk_says(
    toy: str, form: str, table: list[str], tmp_path: Path, monkeypatch: Any
) -> None:
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = export(toy, form)
    decoder = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    forwards: list[int] = []
    decoder.model.layers[0].register_forward_hook(lambda *_: forwards.append(1))
    same = written = drafted_in = 0
    for tokens in prompts():
        prompt = torch.tensor([tokens])
        how = {"do_sample": False, "max_new_tokens": TOKENS, "pad_token_id": 0, "eos_token_id": None}
        how["attention_mask"] = torch.ones_like(prompt)
        plain = decoder.generate(prompt, **how)
        before = len(forwards)
        drafted = decoder.generate(prompt, use_mtp=True, **how)
        drafted_in += len(forwards) - before
        same += torch.equal(plain, drafted)
        written += drafted.shape[1] - prompt.shape[1]
    per_forward = written / drafted_in
    table.append(f"| {toy} | `{form}` | transformers | {per_forward:.2f} | | | | {same} of {PROMPTS} |")
    assert same == PROMPTS
    assert per_forward >= (LEAST_OF_ONE_DEPTH if form == "exaone" else LEAST)
