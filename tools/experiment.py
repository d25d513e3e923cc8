"""Runs the controlled experiment that a plan describes, and reports what it shows, whichever way it comes out.

    python tools/experiment.py tools/experimenting/cpu.yaml --output runs/experiment_cpu

Builds the corpus, trains a tokenizer and a reference, scores the corpus with it once, trains every arm with every seed
from the same initial weights and on the same rows, and measures what came of it and what it cost. Everything goes into
`results.parquet`; `report/` is made from that file alone: `index.html` (opens offline), `summary.md` and figures as
PNG. The same command goes on where it was stopped, and `--report-only` draws the report of the results that are there.
"""

import argparse
import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers.utils import logging

from benchmarks.machine import describe_machine, describe_versions
from experimenting.costs import measure_costs
from experimenting.plan import REFERENCE, Plan, read_plan, require_same_plan
from experimenting.preparation import prepare
from experimenting.processes import threads_of
from experimenting.report import write_report
from experimenting.results import Results, open_results
from experimenting.runs import LOSS, PlannedRun, decode_missing, planned_runs, train_missing
from wmtp_core import UserError
from wmtp_models.loading import load_wmtp
from wmtp_train.command_line import load_settings
from wmtp_train.processes import run


def experiment(plan: Plan, home: Path, command: str) -> Results:
    """Do whatever of the plan is not done yet.

    Raises:
        UserError: settings that no run can use, another plan's folder, or a script that failed.
    """
    for name in os.environ:
        if name.startswith("WMTP_"):
            raise UserError(f"environment variable {name}: would change every run unseen; unset it")
    home.mkdir(parents=True, exist_ok=True)
    require_same_plan(plan, home / "plan.json")
    results = open_results(home / "results.parquet")
    runs = planned_runs(plan, home)
    for planned in runs:
        load_settings(["--config", str(planned.config)])  # what no run can use is refused now, not after hours
    results.facts |= {"plan": plan.model_dump(mode="json"), "command": command}
    if not all(results.has(planned.arm, planned.seed, LOSS) for planned in runs):
        prepare(plan, home)
        train_missing(runs, results, plan.processes, home / "logs")
    torch.set_num_threads(threads_of(plan.processes))  # as the runs had
    decode_missing(runs, results, plan, home)
    if not all(results.has(arm, None, "cost/seconds") for arm in plan.arms):
        _measure_costs(plan, home, runs, results)
    return results


def _measure_costs(plan: Plan, home: Path, runs: list[PlannedRun], results: Results) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    first = {planned.arm: planned for planned in reversed(runs)}
    configs = {arm: first[arm].config for arm in plan.arms} | {REFERENCE: home / "reference.yaml"}
    settings = load_settings(["--config", str(first[plan.baseline].config)])
    reference = load_settings(["--config", str(home / "reference.yaml")])
    deepspeed = json.loads((home / "deepspeed.json").read_text("utf-8"))
    model = load_wmtp(settings.output_dir / "model")
    results.forget("cost/")
    results.facts |= {
        "machine": describe_machine(device),
        "versions": describe_versions(),
        "clock": "GPU" if device.type == "cuda" else "CPU",
        "steps": settings.steps,
        "reference_steps": reference.steps,
        "tokens_per_step": deepspeed["train_batch_size"] * settings.data.sequence_length,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    results.add(list(measure_costs(configs, plan.timed_steps)))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Run a controlled experiment and report it.")
    parser.add_argument("plan", type=Path, nargs="?", metavar="PLAN.yaml", help="like tools/experimenting/cpu.yaml")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the experiment")
    parser.add_argument("--report-only", action="store_true", help="draw the report of DIR/results.parquet")
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    if options.report_only:
        results = open_results(options.output / "results.parquet")
        if "clock" not in results.facts:
            raise UserError(f"--output {options.output}: holds no complete results.parquet; run the plan to its end")
    elif options.plan is None:
        raise UserError("name a plan, like tools/experimenting/cpu.yaml")
    else:
        command = shlex.join(["python", "tools/experiment.py", *given])
        logging.disable_progress_bar()
        results = experiment(read_plan(options.plan), options.output, command)
    write_report(results, options.output / "report")
    print(f"report: {options.output / 'report/index.html'}; results: {results.file}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the runs are ended, and save, as at Ctrl-C
    try:
        run(main)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(130)
