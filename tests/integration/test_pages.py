"""Every Python example of the pages for one's own loop, and of the packages, runs as it is printed."""

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from pages import blocks
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    TrainingArguments,
)

from wmtp_core import dense_cross_entropy
from wmtp_models import MtpForCausalLM, generate
from wmtp_models.training.hf_trainer import MtpTrainerMixin

ROOT = Path(__file__).parents[2]
README, OWN_LOOP = blocks(ROOT / "README.md"), blocks(ROOT / "docs/own_loop.md")  # these, and no other
B, S, H, V = 2, 12, 4, 290


def llama() -> LlamaForCausalLM:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=V, **sizes))


@pytest.fixture
def given(tiny_home: Path, tmp_path: Path) -> dict[str, Any]:
    """What the examples name and do not make."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_home / "tokenizer", pad_token="<eos>")
    options = {"use_cpu": True, "max_steps": 2, "report_to": [], "logging_steps": 1, "disable_tqdm": True}
    rows = [{"input_ids": torch.randint(1, V, (length,)).tolist()} for length in (5, 12, 7, 9)]
    return {
        "model": llama(),
        "reference_model": llama(),
        "tokenizer": tokenizer,
        "batches": [{"input_ids": torch.randint(V, (B, S)), "attention_mask": torch.ones(B, S)} for _ in range(4)],
        "arguments": TrainingArguments(str(tmp_path / "run"), **options),
        "data": Dataset.from_list(rows),
        "collator": DataCollatorForLanguageModeling(tokenizer, mlm=False),
        "labels": torch.randint(V, (B, S)),
        "logits": torch.randn(B, S, H, V, requires_grad=True),
        "reference_ce": 3 * torch.rand(B, S),
    }


def run(block: str, given: dict[str, Any]) -> dict[str, Any]:
    namespace = dict(given)
    exec(compile(block, "example", "exec"), namespace)
    return namespace


def test_no_example_is_left_out():
    assert (len(README), len(OWN_LOOP)) == (3, 3)


def test_a_plain_loop(given):
    before = [weight.clone() for weight in given["model"].parameters()]
    after = run(README[0], given)
    assert isinstance(after["policy"], MtpForCausalLM)
    assert after["loss"].item() == pytest.approx(math.log(V), rel=0.05)
    assert not any(torch.equal(was, weight) for was, weight in zip(before, given["model"].parameters(), strict=True))


def test_the_trainer_of_transformers(given):
    after = run(README[1], given)
    logged = after["trainer"].state.log_history[0]
    assert logged["ce/head_0"] == pytest.approx(math.log(V), rel=0.05)
    assert 0.5 < logged["selected_ratio/head_3"] < 0.8 < logged["selected_ratio/head_0"] == 1


def test_tensors_alone(given):
    after = run(README[2], given)
    kept, valid = after["weights"].sum(dim=(0, 1)), after["valid"].sum(dim=(0, 1))
    assert kept.tolist() == [valid[0], *(1 + math.floor(0.6 * (n - 1) + 1e-9) for n in valid[1:].tolist())]
    ce = dense_cross_entropy(given["logits"].detach(), after["targets"])
    expected = ((ce * after["weights"]).sum(dim=(0, 1)) / valid).mean()
    assert after["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert given["logits"].grad.ne(0).any(-1).equal(after["weights"] != 0)


def test_accumulation_by_hand_takes_the_step_of_all_rows_at_once(given):
    given["batches"][1]["labels"] = torch.full((B, S), -100)  # nothing to learn: it weighs nothing
    whole = llama()
    whole.load_state_dict(given["model"].state_dict())
    policy = MtpForCausalLM.wrap(whole, horizon=H)
    rows = torch.cat([batch["input_ids"] for i, batch in enumerate(given["batches"]) if i != 1])
    output = policy(rows)
    counts = output.valid.sum(dim=(0, 1))
    (output.ce.sum(dim=(0, 1)) / counts).mean().backward()
    after = run(OWN_LOOP[0], given)
    for ours, theirs in zip(after["policy"].parameters(), policy.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_selection_by_hand_keeps_and_learns(given):
    before = given["model"].lm_head.weight.clone()
    after = run(OWN_LOOP[1], given)
    weights = after["plan"].weights(after["output"].ce.detach())
    n = (S - 2) * B
    assert weights.sum(dim=(0, 1))[:2].tolist() == [(S - 1) * B, 1 + math.floor(0.6 * (n - 1) + 1e-9)]
    assert not torch.equal(given["model"].lm_head.weight, before)


@pytest.mark.parametrize("package", ["wmtp-core", "wmtp-models"])
def test_the_example_of_a_package(package, monkeypatch):
    (example,) = blocks(ROOT / "packages" / package / "README.md")
    torch.manual_seed(0)
    after = run(example, {})
    if package == "wmtp-core":
        assert after["hidden"].grad.isfinite().all()
        assert after["loss"] > 0
    else:
        assert after["generate"] is generate
        assert [len(row) for row in after["result"].sequences] == [11, 9]


def test_the_example_of_wmtp_eval(namespaces, capsys):
    (example,) = blocks(ROOT / "packages/wmtp-eval/README.md")
    run(example, {})
    passed, refused = capsys.readouterr().out.splitlines()
    assert passed == "passed"
    assert "unreachable" in refused


@pytest.mark.slow
def test_trl(given, tmp_path):
    trl = pytest.importorskip("trl", reason="the extra trl of wmtp-models is not installed")
    options = {"use_cpu": True, "bf16": False, "max_steps": 2, "report_to": [], "logging_steps": 1}
    given["arguments"] = trl.SFTConfig(str(tmp_path / "run"), **options)
    given["data"] = Dataset.from_list([{"prompt": "def f(", "completion": f"x{n}): return x{n}"} for n in range(4)])
    after = run(OWN_LOOP[2], given)
    assert isinstance(after["trainer"], MtpTrainerMixin)
    assert os.path.isfile(tmp_path / "run/checkpoint-2/model.safetensors")
    assert after["trainer"].state.log_history[0]["ce/head_3"] == pytest.approx(math.log(V), rel=0.1)
