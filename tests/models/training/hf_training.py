"""Tiny runs in `transformers.Trainer` and TRL's `SFTTrainer`, in this process or on ranks."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from wmtp_core import HeadWeighting, RandomWeighting, Rho1Weighting, UniformWeighting
from wmtp_models import MtpForCausalLM, ReferenceModel
from wmtp_models.training.hf_trainer import MtpTrainerMixin

LENGTHS = (5, 9, 20, 2, 7, 12, 3, 16)
VOCABULARY = 40
RULES = {
    "uniform": UniformWeighting,
    "random": lambda: RandomWeighting(0.5, "sequence"),
    "rho1": lambda: Rho1Weighting(0.5, "sequence"),
}

OPTIONS = {
    "max_steps": 2,
    "optim": "sgd",
    "learning_rate": 0.5,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "use_cpu": True,
    "report_to": [],
    "logging_steps": 1,
    "save_strategy": "no",
    "disable_tqdm": True,
    "seed": 3,
}


class MtpTrainer(MtpTrainerMixin, Trainer):
    pass


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, initializer_range=0.3, **sizes))


def documents() -> list[dict[str, list[int]]]:
    """Of unequal lengths; the first three tokens of every second one are a prompt."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for number, length in enumerate(LENGTHS):
        ids = torch.randint(1, VOCABULARY, (length,), generator=draw).tolist()
        found.append({"input_ids": ids, "labels": ([-100] * 3 + ids[3:])[:length] if number % 2 else ids})
    return found


def collate(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Pad at the right, with a token that has a meaning of its own, and a label that only the mask hides."""
    longest = max(len(row["input_ids"]) for row in rows)
    columns = {
        "input_ids": [row["input_ids"] + [7] * (longest - len(row["input_ids"])) for row in rows],
        "labels": [row["labels"] + [7] * (longest - len(row["labels"])) for row in rows],
        "attention_mask": [[1] * len(row["labels"]) + [0] * (longest - len(row["labels"])) for row in rows],
    }
    return {name: torch.tensor(values) for name, values in columns.items()}


def arguments(folder: Path, rows: int, accumulation: int, **changes: Any) -> TrainingArguments:
    size = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
    return TrainingArguments(str(folder), **{**OPTIONS, **size, **changes})


def trainer(folder: Path, rows: int, accumulation: int, rule: str = "uniform", **changes: Any) -> MtpTrainer:
    weighting: HeadWeighting = RULES[rule]()
    return MtpTrainer(
        MtpForCausalLM.wrap(llama(), horizon=3),
        arguments(folder, rows, accumulation, **changes),
        collate,
        Dataset.from_list(documents()),
        eval_dataset=Dataset.from_list(documents()),
        weighting=weighting,
        reference=ReferenceModel(llama(seed=1)) if rule == "rho1" else None,
    )


def trained(folder: Path, rows: int, accumulation: int, rule: str = "uniform") -> tuple[dict[str, Tensor], list[Any]]:
    """The weights after a few steps, and what was logged."""
    own = trainer(folder, rows, accumulation, rule)
    own.train()
    return {name: weight.detach() for name, weight in own.model.named_parameters()}, own.state.log_history


def trained_on_rank(mesh: Any, folder: str, rows: int, accumulation: int, rule: str) -> Any:
    """The same on one of several ranks."""
    return trained(Path(folder), rows, accumulation, rule)
