"""The runs of an experiment: those that are missing are trained, and what each left becomes rows."""

import json
import shutil
import time
from pathlib import Path
from typing import NamedTuple

from wmtp_lab.experiment.decoding import GREEDY, ON_TEXT, measure_decoding
from wmtp_lab.experiment.plan import REFERENCE, Plan, reference_settings, run_settings
from wmtp_lab.experiment.preparation import reference_config, train_job, write_config
from wmtp_lab.experiment.processes import run_jobs
from wmtp_lab.experiment.results import Results, Row
from wmtp_lab.report.runs import read_runs

LOSS = "evaluation/clean/ce/head_0"
"""What the experiment is about: the next-token loss on clean held-out text."""


class PlannedRun(NamedTuple):
    """One arm with one seed."""

    arm: str
    seed: int
    config: Path
    folder: Path

    @property
    def name(self) -> str:
        """The run's name, and its log's."""
        return f"{self.arm}-seed-{self.seed}"


def planned_runs(plan: Plan, home: Path) -> list[PlannedRun]:
    """Return all runs with every configuration written, a whole round of arms before the next seed."""
    for name in (REFERENCE, *plan.other_references):
        write_config(reference_settings(plan, home, name), reference_config(home, name))
    runs = []
    for seed in plan.seeds:
        for arm in plan.arms:
            settings = run_settings(plan, home, arm, seed)
            config = write_config(settings, home / "configs" / arm / f"seed-{seed}.yaml")
            runs.append(PlannedRun(arm, seed, config, Path(settings["output_dir"])))
    return runs


def train_missing(runs: list[PlannedRun], results: Results, processes: int, home: Path) -> None:
    """Train what has no rows yet. A run that was cut off goes on from its newest checkpoint."""
    missing = {run.name: run for run in runs if not results.has(run.arm, run.seed, LOSS)}
    jobs = [train_job(run.name, home, run.config) for run in missing.values()]
    start = time.perf_counter()
    for number, job in enumerate(run_jobs(jobs, processes), start=1):
        run = missing[job.name]
        if run.seed == runs[0].seed:
            passages = json.loads((run.folder / "passages.json").read_text("utf-8"))
            results.facts.setdefault("passages", {})[run.arm] = passages["noisy"]
        results.add(rows_of(run.arm, run.seed, run.folder))
        shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)  # its rows stand, nothing resumes it any more
        loss = results.final(run.arm, run.seed, LOSS)
        seconds = time.perf_counter() - start
        print(f"[{number}/{len(jobs)}] {run.name}: clean next-token loss {loss:.4f}; {seconds:.0f} s", flush=True)


def record_references(plan: Plan, results: Results, home: Path) -> None:
    """Take in what the references' runs recorded."""
    for name in (REFERENCE, *plan.other_references):
        if not results.has(name, None, LOSS):
            results.add(rows_of(name, None, home / name))


def rows_of(arm: str, seed: int | None, folder: Path) -> list[Row]:
    """Return what a finished run recorded: TensorBoard's scalars, and its final held-out metrics unrounded."""
    (found,) = read_runs([folder])
    points = {
        (tag, step): value
        for tag, series in found.scalars.items()
        for step, value in zip(*series, strict=True)  # a step that a resumed run wrote again counts once
    }
    points |= {(f"evaluation/{metric}", found.steps): value for metric, value in found.metrics.items()}
    return [Row(arm, seed, tag, step, value) for (tag, step), value in sorted(points.items())]


def decode_missing(runs: list[PlannedRun], results: Results, prompts: list[list[int]], new_tokens: int) -> None:
    """Count accepted drafts on every trained model of several heads that has no such metrics yet."""
    missing = [
        run
        for run in runs
        if results.has(run.arm, run.seed, "evaluation/clean/ce/head_1") and not results.has(run.arm, run.seed, GREEDY)
    ]
    for run in missing:
        metrics = measure_decoding(run.folder / "model", prompts, new_tokens)
        metrics[ON_TEXT] = results.final(run.arm, run.seed, "evaluation/clean/tokens_per_forward") - 1
        results.add(Row(run.arm, run.seed, metric, 0, value) for metric, value in metrics.items())
