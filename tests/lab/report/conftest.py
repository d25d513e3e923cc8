"""A finished run as the trainer leaves it, small enough to check every figure by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter

Scalars = dict[str, list[tuple[int, float]]]

# Heads 0, 1, 2 over three points; the later heads keep less and less of the noise.
SCALARS: Scalars = {
    "ce/head_0": [(10, 8.0), (20, 6.0), (30, 4.0)],
    "ce/head_1": [(10, 8.5), (20, 7.0), (30, 5.5)],
    "ce/head_2": [(10, 9.0), (20, 8.0), (30, 7.0)],
    "selected_ratio/head_0": [(10, 1.0), (20, 1.0), (30, 1.0)],
    "selected_ratio/head_1": [(10, 0.6), (20, 0.6), (30, 0.6)],
    "selected_ratio/head_2": [(10, 0.6), (20, 0.6), (30, 0.6)],
    "threshold/head_0": [(10, 0.1), (20, 0.1), (30, 0.1)],
    "threshold/head_1": [(10, 0.5), (20, 0.2), (30, 0.1)],
    "noise/kept/clean": [(10, 0.6), (20, 0.7), (30, 0.8)],
    "noise/kept/log": [(10, 0.5), (20, 0.4), (30, 0.3)],
    "noise/kept/base64": [(10, 0.4), (20, 0.2), (30, 0.1)],
    "train/tokens_per_second": [(10, 2000.0), (20, 4000.0), (30, 4200.0)],
    "train/step_seconds": [(10, 0.5), (20, 0.25), (30, 0.2380952)],
}
METRICS = {
    "clean/ce/head_0": 4.25,
    "clean/ce/head_1": 5.75,
    "clean/ce/head_2": 7.25,
    "noisy/ce/head_0": 4.75,
    "noisy/ce/head_1": 6.25,
    "noisy/ce/head_2": 7.75,
    "noisy/clean_ce/head_0": 4.5,
    "noisy/clean_ce/head_1": 6.0,
    "noisy/clean_ce/head_2": 7.5,
    "noisy/noise/kept/clean": 0.83,
    "noisy/noise/kept/log": 0.31,
    "noisy/noise/kept/base64": 0.12,
    "noisy/excess_auc": 0.79,
}
PASSAGE = {
    "tokens": ["def", " f", "():\n", "\t<script>", "AAA=", " x"],
    "noise": ["", "", "", "base64", "base64", ""],
    "documents": [0, 0, 0, 0, 0, 1],
    "weights": [
        [None, None, None],
        [1.0, None, None],
        [1.0, 1.0, None],
        [1.0, 0.0, 1.0],
        [1.0, 0.0, 0.0],
        [1.0, 1.0, 1.0],
    ],
}
CLEAN_PASSAGE = {"tokens": ["a"], "noise": [""], "documents": [0], "weights": [[1.0, 1.0, 1.0]]}
PASSAGES = {"clean": CLEAN_PASSAGE, "noisy": PASSAGE}

MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a run folder under `tmp_path`, with anything else than the contents above where told."""

    def make(
        name: str = "run",
        algo: str = "rho1-wmtp",
        scalars: Scalars = SCALARS,
        metrics: dict[str, float] = METRICS,
        passages: dict[str, Any] = PASSAGES,
    ) -> Path:
        folder = tmp_path / name
        with SummaryWriter(str(folder / "tensorboard")) as writer:
            for tag, points in scalars.items():
                for step, value in points:
                    writer.add_scalar(tag, value, step)
        (folder / "settings.json").write_text(json.dumps({"algo": algo}))
        (folder / "evaluation.json").write_text(json.dumps(metrics))
        (folder / "passages.json").write_text(json.dumps(passages))
        return folder

    return make
