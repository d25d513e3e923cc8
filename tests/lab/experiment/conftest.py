"""Results as an experiment leaves them, made up so that every metric of the report is known."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wmtp_lab.experiment.results import Results, Row

STEPS = (0, 10, 20, 30)
KINDS = ("clean", "hexdump", "log")
PASSAGE = {
    "tokens": ["def", " f", "():\n", "AAA=", " x"],
    "noise": ["", "", "", "base64", ""],
    "documents": [0, 0, 0, 0, 0],
    "weights": [[None, None], [1.0, None], [1.0, 1.0], [1.0, 0.0], [1.0, 1.0]],
}
PLAIN = {**PASSAGE, "weights": [[None, None], [1.0, None], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]}

Curves = dict[str, list[list[float]]]
"""Of each arm the next-token losses at `STEPS`, a list for each seed."""

# The second arm ends 0.2 nats lower with each seed; the third has one head, and ends as the baseline does on average.
CURVES: Curves = {
    "mtp-baseline": [[7.0, 5.0, 4.5, 4.00], [7.1, 5.1, 4.6, 4.10], [7.2, 5.2, 4.7, 4.20]],
    "rho1-k0.6": [[7.0, 5.0, 4.4, 3.81], [7.1, 5.1, 4.4, 3.90], [7.2, 5.2, 4.4, 3.99]],
    "next-token": [[7.0, 5.0, 4.4, 4.10], [7.1, 5.1, 4.4, 4.00], [7.2, 5.2, 4.4, 4.20]],
}
FLOP = {"mtp-baseline": 100.0, "rho1-k0.6": 80.0, "next-token": 50.0, "reference": 50.0}

MakeResults = Callable[..., Results]


def rows(curves: Curves) -> list[Row]:
    found = []
    for place, (arm, seeds) in enumerate(curves.items()):
        for seed, losses in enumerate(seeds):
            for step, loss in zip(STEPS, losses, strict=True):
                found.append(Row(arm, seed, "evaluation/clean/ce/head_0", step, loss))
                for name in ("noisy/ce", "noisy/clean_ce", "generated/ce"):
                    found.append(Row(arm, seed, f"evaluation/{name}/head_0", step, loss + 0.5))
                found.append(Row(arm, seed, "evaluation/clean/accuracy/head_0", step, 1 - loss / 10))
                if arm != "next-token":
                    found.append(Row(arm, seed, "evaluation/clean/ce/head_1", step, loss + 1))
                    found.append(Row(arm, seed, "evaluation/clean/accuracy/head_1", step, 0.25))
                if arm.startswith("rho1"):
                    found += selection_rows(arm, seed, step)
            if arm != "next-token":
                for name in ("greedy", "sampled", "text"):
                    accepted = 1.5 - 0.1 * place + 0.01 * (-1) ** (seed + place)
                    found.append(Row(arm, seed, f"decoding/{name}/accepted_per_forward", 0, accepted))
    return found


def count_rows(seeds: int) -> list[Row]:
    """The table is worse than the second arm of `CURVES` with each seed, and worse at head 1 than every arm."""
    found = []
    for seed in range(seeds):
        for head in range(2):
            name = f"ce/head_{head}"
            found.append(Row("bigram table", seed, f"evaluation/clean/{name}", 30, 4 + 2 * head + 0.1 * seed))
            found.append(Row("bigram table", seed, f"evaluation/clean/accuracy/head_{head}", 30, 0.5))
            found.append(Row("unigram entropy", seed, f"evaluation/clean/{name}", 30, 5.0))
    return found


def selection_rows(arm: str, seed: int, step: int) -> list[Row]:
    shares = {kind: (step / 30) / (place + 1) for place, kind in enumerate(KINDS)}
    metrics = {f"noise/kept/{kind}": share for kind, share in shares.items()}
    metrics |= {"noise/precision": 0.6, "noise/recall": 0.8, "excess_auc": 0.5 + step / 100}
    return [Row(arm, seed, f"evaluation/noisy/{metric}", step, value) for metric, value in metrics.items()]


def cost_rows(arms: list[str]) -> list[Row]:
    found = []
    for arm in (*arms, "reference"):
        flop = FLOP.get(arm, 90.0)
        found += [Row(arm, None, "cost/flop", n, flop) for n in range(2)]
        found += [Row(arm, None, "cost/seconds", n, flop / 100 + 0.1 * n) for n in range(3)]
        found.append(Row(arm, None, "cost/peak_bytes", 0, 2.0**24))
    return found


@pytest.fixture
def make_results(tmp_path: Path) -> MakeResults:
    """Writes a results file for these curves; the facts can be changed."""

    def make(curves: Curves = CURVES, also_compare: list[tuple[str, str]] | None = None, **facts: Any) -> Results:
        arms = list(curves)
        plan = {
            "arms": {arm: {} for arm in arms},
            "seeds": list(range(len(curves[arms[0]]))),
            "baseline": arms[0],
            "also_compare": also_compare or [],
            "train": {"optimizer": {"schedule": "constant"}},
            "timed_steps": 3,
        }
        results = Results(tmp_path / "results.parquet")
        results.facts = {
            "plan": plan,
            "steps": 30,
            "reference_steps": 60,
            "tokens_per_step": 1000,
            "parameters": 2_000_000,
            "clock": "CPU",
            "machine": {"processor": "abacus"},
            "versions": {"torch": "9"},
            "command": "python -m wmtp_lab.experiment plan.yaml --output here",
            "commits": {"runs": ["0123abc", "4567def"], "costs": ["4567def"]},
            "passages": {arm: PASSAGE if arm.startswith("rho1") else PLAIN for arm in arms},
            **facts,
        }
        results.add(rows(curves) + count_rows(len(curves[arms[0]])) + cost_rows(arms))
        return results

    return make
