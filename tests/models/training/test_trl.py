"""The same mixin on TRL's `SFTTrainer`: its data, padded or packed, under this loss."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hf_training import OPTIONS, documents, llama
from transformers import AutoTokenizer

from wmtp_core import Rho1Weighting
from wmtp_models import MtpForCausalLM, ReferenceModel
from wmtp_models.training.hf_trainer import MtpTrainerMixin

trl = pytest.importorskip("trl", reason="the extra trl of wmtp-models is not installed")
H = 3
pytestmark = pytest.mark.slow


class MtpSFTTrainer(MtpTrainerMixin, trl.SFTTrainer):
    pass


@pytest.fixture
def train(tiny_home: Path, tmp_path: Path) -> Callable[..., Any]:
    """Trains on documents or texts; the trainer afterwards."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_home / "tokenizer")
    return partial(trained, tmp_path, tokenizer)


def trained(folder: Path, tokenizer: Any, data: list[dict[str, Any]], weighting: Any = None, **changes: Any) -> Any:
    model = llama()
    if "input_ids" not in data[0]:
        model.resize_token_embeddings(len(tokenizer))
    trainer = MtpSFTTrainer(
        MtpForCausalLM.wrap(model, horizon=H),
        trl.SFTConfig(str(folder), **{**OPTIONS, "per_device_train_batch_size": 8, "bf16": False, **changes}),
        train_dataset=Dataset.from_list(data),
        eval_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
        weighting=weighting,
        reference=None if weighting is None else ReferenceModel(llama(seed=1)),
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("rule", [None, Rho1Weighting(0.5)])
def test_padded_packed_or_accumulated_it_learns_the_same(rule, train):
    """All documents a step: in padded rows, in one row without padding, and in four micro-batches."""
    padded = train(documents(), weighting=rule)
    logged = padded.state.log_history[0]
    packed = train(documents(), weighting=rule, packing=True, max_length=128)
    ways = [packed]
    if rule is None:
        ways.append(train(documents(), per_device_train_batch_size=2, gradient_accumulation_steps=4))
    batch = next(iter(packed.get_train_dataloader()))
    assert batch["input_ids"].shape == (1, sum(len(row["input_ids"]) for row in documents()))
    for other in ways:
        for name, weight in padded.model.named_parameters():
            torch.testing.assert_close(dict(other.model.named_parameters())[name], weight, rtol=1e-4, atol=1e-5)
        for name in ("loss", "ce/head_0", "ce/head_2", "selected_ratio/head_1"):
            assert other.state.log_history[0][name] == pytest.approx(logged[name], rel=1e-5), name
    untouched = dict(MtpForCausalLM.wrap(llama(), H).named_parameters())
    assert not any(torch.allclose(weight, untouched[name]) for name, weight in padded.model.named_parameters())


def test_completions_are_learned_evaluated_and_saved(train, tmp_path):
    data = [{"prompt": "def f(", "completion": f"x{n}): return x{n}"} for n in range(4)]
    trainer = train(data, save_strategy="steps", save_steps=1)
    metrics = trainer.evaluate()
    assert metrics["eval_ce/head_0"] < trainer.state.log_history[0]["ce/head_0"]
    assert {f"eval_ce/head_{h}" for h in range(H)} <= metrics.keys()
    loaded = MtpForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    ids = torch.arange(1, 9).view(1, -1)
    assert torch.equal(loaded(ids).ce, trainer.model.eval()(ids).ce)
