"""Same tokens, same gradients, any split: ZeRO stage × processes × accumulation, at one global batch, in float32.

Every run is the whole product on the same 5 steps of 16 rows, and is held against the run of one process at stage 0.
The rows are as uneven as they get: some have no target at all, so that there are ranks without any.

The two scopes of rho1-wmtp go through all 36 splits with untied embeddings. Every other rule goes through 12 of them,
tied and untied by turns, in which each pair of values of stage, world, accumulation and tying occurs. Then there are
splits of rows (processes that share them), and of heads that learn from head 0 or move nothing but themselves. Only
what pytest was asked for is trained: `-k critic` takes seconds.
"""

import json
import random
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from wmtp_train.data.packed.order import stream_rows

pytestmark = pytest.mark.slow

STEPS, ROWS, LENGTH, HORIZON, SEED = 5, 16, 16, 4, 5
STAGES, WORLDS, ACCUMULATIONS = (0, 1, 2, 3), (1, 2, 4), (1, 2, 4)

CRITIC = {"value_warmup_steps": 2, "value_coefficient": 1.0, "return_lambda": 0.9}
EXP = {**CRITIC, "transform": "exp", "advantage": "gae", "gradient_to_trunk": True}
RULES: dict[str, dict[str, Any]] = {
    "sequence": {"algo": "rho1-wmtp", "selection": {"scope": "sequence"}},
    "batch": {"algo": "rho1-wmtp", "selection": {"scope": "batch"}},
    "sequence-selected": {"algo": "rho1-wmtp", "selection": {"scope": "sequence"}, "normalize_by": "selected"},
    "batch-selected": {"algo": "rho1-wmtp", "selection": {"scope": "batch"}, "normalize_by": "selected"},
    "baseline": {"algo": "mtp-baseline"},
    "critic": {"algo": "critic-wmtp", "critic": CRITIC},
    "critic-exp": {"algo": "critic-wmtp", "critic": EXP},
    "sequential-shared": {"algo": "rho1-wmtp", "selection": {"scope": "sequence"}, "head_kind": "sequential"},
    "sequential-each": {"algo": "critic-wmtp", "critic": CRITIC, "head_kind": "sequential", "shared_module": False},
}
WITH_SHARED_ROWS: dict[str, dict[str, Any]] = {
    "recomputed": {"algo": "mtp-baseline", "gradient_checkpointing": True},
    "mlp": {"algo": "rho1-wmtp", "selection": {"scope": "sequence"}, "head_kind": "mlp"},
    "linear": {"algo": "random", "head_kind": "linear"},
}
WITH_DISTILLATION: dict[str, dict[str, Any]] = {
    "detached": {"algo": "reach-wmtp", "objective": "distill", "detach_heads": True, "head_kind": "sequential"},
    "distilled": {
        "algo": "rho1-wmtp",
        "selection": {"scope": "sequence"},
        "objective": "distill",
        "distill": {"divergence": "reverse-kl", "cross_entropy": 0.3},
    },
    "detached-layers": {"algo": "mtp-baseline", "detach_heads": True},
}
# What compares over a micro-batch gives the same for every world size, but not for every accumulation.
OVER_MICRO_BATCHES = {"batch", "batch-selected", "critic-exp", "linear"}
OF_MODEL = ("head_kind", "shared_module", "gradient_checkpointing", "detach_heads")
TIMES = {"train/step_seconds", "train/tokens_per_second"}


class Split(NamedTuple):
    """A rule, and how its run is split."""

    rule: str
    tied: bool
    stage: int
    world: int
    accumulation: int
    sharing: int = 1

    def alone(self) -> "Split":
        """The run of one process at stage 0 that this one has to agree with."""
        accumulation = self.accumulation if self.rule in OVER_MICRO_BATCHES else 1
        return self._replace(stage=0, world=1, accumulation=accumulation, sharing=1)

    def __str__(self) -> str:
        tied = "tied" if self.tied else "untied"
        shared = f"-sharing{self.sharing}" if self.sharing > 1 else ""
        return f"{self.rule}-{tied}-stage{self.stage}-world{self.world}-accumulation{self.accumulation}{shared}"


Runs = Callable[[Split], dict[str, Any]]
ALL = [(False, *split) for split in product(STAGES, WORLDS, ACCUMULATIONS)]
PAIRWISE = [
    ((s + w) % 2 == 0, STAGES[s], WORLDS[w], ACCUMULATIONS[(s + w) % 3])
    for s, w in product(range(len(STAGES)), range(len(WORLDS)))
]
SHARED = [
    *(Split("sequence", False, stage, 2, 2, sharing=2) for stage in STAGES),
    Split("sequence-selected", True, 3, 4, 1, sharing=2),
    Split("batch", False, 1, 2, 2, sharing=2),
    Split("batch", True, 2, 4, 2, sharing=2),
    Split("batch-selected", False, 3, 4, 1, sharing=2),
    Split("baseline", False, 1, 4, 1, sharing=4),
    Split("recomputed", True, 3, 4, 2, sharing=4),
    Split("critic", False, 2, 4, 1, sharing=4),
    Split("critic-exp", True, 3, 4, 1, sharing=2),
    Split("sequential-shared", False, 3, 2, 1, sharing=2),
    Split("sequential-each", True, 1, 4, 1, sharing=4),
    Split("mlp", False, 1, 2, 1, sharing=2),
    Split("linear", False, 3, 4, 1, sharing=2),
]
SPLITS = [Split(rule, *split) for rule in RULES for split in (ALL if rule in ("sequence", "batch") else PAIRWISE)]
SPLITS += SHARED
SPLITS += [
    Split("detached", True, 0, 2, 2),
    Split("detached", False, 1, 4, 1),
    Split("detached", True, 2, 2, 4),
    Split("detached", True, 3, 4, 2),
    Split("distilled", False, 3, 2, 2),
    Split("distilled", True, 2, 4, 1),
    Split("detached-layers", True, 3, 2, 1),
    Split("detached-layers", False, 2, 4, 2),
]


def uneven_documents() -> list[dict[str, Any]]:
    """Code with and without a known reward, prompts longer than a row, and pairs."""
    draw = random.Random(3)

    def code(lines: int) -> str:
        numbers = [f"{draw.random():.2f}" for _ in range(lines)]
        return "".join(f"def {draw.choice('abc')}({draw.choice('xyz')}): return {number}\n" for number in numbers)

    documents: list[dict[str, Any]] = []
    for number in range(9):
        documents.append({"text": code(1 + number % 3), "reward": [0.0, 1.0, None][number % 3]})
        if number % 3 == 0:
            documents.append({"prompt": "# " + code(3), "completion": code(1), "reward": 1.0})
            documents.append({"prompt": "rank: ", "chosen": code(1), "rejected": "??? " * 6})
    return documents


def settings_of(split: Split, folder: Path, home: Path) -> dict[str, Any]:
    llama = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "tie_word_embeddings": split.tied}
    rule = dict((RULES | WITH_SHARED_ROWS | WITH_DISTILLATION)[split.rule])
    of_model = {name: rule.pop(name) for name in OF_MODEL if name in rule}
    return {
        "steps": STEPS,
        "log_every": 1,
        "seed": SEED,
        "output_dir": str(folder / str(split)),
        "deepspeed_config": str(folder / f"{split.stage}-{split.accumulation}-{split.sharing}.json"),
        "data": {
            "train": [str(folder / "train.jsonl")],
            "tokenizer": str(home / "tokenizer"),
            "sequence_length": LENGTH,
            "cache_dir": str(folder / "cache"),
        },
        "model": {"config": {**llama, **heads}, "horizon": HORIZON, **of_model},
        "optimizer": {"learning_rate": 0.001},
        "reference": {"source": str(home / "reference")},
        **rule,
    }


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tiny_home: Path, tmp_path_factory: pytest.TempPathFactory, train_runs: Any
) -> Runs:
    """Trains what the tests ask for, all at once; what each run saw and became: see split_runs.py."""
    folder = tmp_path_factory.mktemp("splits")
    (folder / "train.jsonl").write_text("".join(json.dumps(document) + "\n" for document in uneven_documents()))
    for stage, accumulation, sharing in product(STAGES, ACCUMULATIONS, WORLDS):
        batch = {"train_batch_size": ROWS, "gradient_accumulation_steps": accumulation, "gradient_clipping": 0.0}
        config = {**batch, "zero_optimization": {"stage": stage}, "sequence_parallel_size": sharing}
        (folder / f"{stage}-{accumulation}-{sharing}.json").write_text(json.dumps(config))
    items = [item for item in request.session.items if item.path == request.path]
    asked = [split for item in items for split in item.callspec.params.values()]
    planned: dict[int, dict[str, Any]] = {world: {} for world in WORLDS}
    for run in {run: None for split in asked for run in (split.alone(), split)}:
        planned[run.world][str(run)] = settings_of(run, folder, tiny_home)
    train_runs(folder, planned)
    return lambda split: torch.load(folder / f"{split}.pt")


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_a_split_selects_loses_and_learns_the_same(runs: Runs, split: Split) -> None:
    """Tokens exactly; every logged loss, count and gradient norm, and the final weights, to 1e-5 relative.

    The weights tensor by tensor and in the norm: Adam divides an element's gradient by its size, so one that is nearly
    0 carries the rounding of its sum into the weight whatever its size.
    """
    alone, found = runs(split.alone()), runs(split)
    for name in ("row_ids", "valid", "selected"):
        assert torch.equal(found[name], alone[name]), name
    assert len(found["metrics"]) == STEPS
    for expected, metrics in zip(alone["metrics"], found["metrics"], strict=True):
        assert metrics.keys() == expected.keys()
        for name in metrics.keys() - TIMES:
            # A threshold is that of the step's last micro-batch.
            if not name.startswith("threshold/") or split.accumulation == split.alone().accumulation:
                assert metrics[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-6), name
    assert found["weights"].keys() == alone["weights"].keys()
    for name, weight in alone["weights"].items():
        assert (found["weights"][name] - weight).norm() <= 1e-5 * weight.norm(), name


@pytest.mark.parametrize("scope", [Split("sequence", False, 0, 1, 1)], ids=str)
@pytest.mark.parametrize("other", [Split("batch", False, 0, 1, 1)], ids=str)
def test_what_is_compared_is_uneven_and_matters(runs: Runs, scope: Split, other: Split) -> None:
    """Or all of the above would hold for means over ranks, and for weights that nothing moves."""
    found = runs(scope)
    rows = found["row_ids"]
    assert rows.tolist() == stream_rows(int(rows.max()) + 1, SEED, 0, STEPS * ROWS).tolist()
    targets = found["valid"].sum(dim=1).view(STEPS, ROWS, HORIZON)
    assert (targets == 0).all(dim=-1).any(dim=-1).all(), "in every step some rank of one row has no target"
    for parts in (2, 4):
        of_parts = targets.view(STEPS, parts, -1).sum(dim=2)
        assert (of_parts.amin(dim=1) < 0.98 * of_parts.amax(dim=1)).all(), "ranks and micro-batches differ"
    kept = found["selected"][..., 1:].sum() / found["valid"][..., 1:].sum()
    assert 0.5 < kept < 0.7
    with_other_tokens = runs(other)["weights"]
    for name, weight in found["weights"].items():
        if weight.ndim > 1:
            assert (with_other_tokens[name] - weight).norm() > 1e-3 * weight.norm(), name
