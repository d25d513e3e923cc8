"""Runs the controlled experiment that a plan describes, and reports what it shows, whichever way it comes out.

    python -m wmtp_lab.experiment packages/wmtp-lab/src/wmtp_lab/plans/cpu.yaml --output runs/experiment_cpu

Builds the corpus, trains a tokenizer and a reference, scores the corpus with it once, trains every arm with every seed
from the same initial weights and on the same rows, and measures the outcome and the cost. Everything goes into
`results.parquet`; `report/` is made from that file alone: `index.html` (opens offline), `summary.md` and figures as
PNG. The same command goes on where it was stopped, and `--report-only` draws the report of the results that are there.
"""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import ValidationError
from transformers.utils import logging

from wmtp_core import UserError
from wmtp_lab.experiment.costs import measure_costs
from wmtp_lab.experiment.count_models import BIGRAM_TABLE, measure_counts
from wmtp_lab.experiment.decoding import GREEDY, held_out_prompts
from wmtp_lab.experiment.plan import REFERENCE, Plan, read_plan, require_same_plan
from wmtp_lab.experiment.preparation import prepare_references, prepare_text, reference_config
from wmtp_lab.experiment.processes import ROOT, threads_of
from wmtp_lab.experiment.report import write_report
from wmtp_lab.experiment.results import Results, open_results
from wmtp_lab.experiment.runs import LOSS, PlannedRun, decode_missing, planned_runs, record_references, train_missing
from wmtp_lab.measure.machine import describe_commit, describe_machine, describe_versions
from wmtp_models.loading import load_wmtp
from wmtp_train.atomic_io import write_json
from wmtp_train.engines.deepspeed.config import read_deepspeed_config
from wmtp_train.ranks.collective import describe
from wmtp_train.ranks.lifecycle import run
from wmtp_train.settings.command_line import load_settings
from wmtp_train.settings.schema import Settings


def experiment(plan: Plan, home: Path, command: str) -> Results:
    """Do whatever of the plan is not done yet.

    Raises:
        UserError: settings that no run can use, another plan's folder, or a script that failed.
    """
    for name in os.environ:
        if name.startswith("WMTP_"):
            raise UserError(f"environment variable {name}: would change every run unseen; unset it")
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {home}: {describe(error)}; name a folder that can be made") from error
    require_same_plan(plan, home / "plan.json")
    results = open_results(home / "results.parquet")
    runs = planned_runs(plan, home)
    settings = [load_settings(["--config", str(run.config)]) for run in runs]  # what no run can use is refused now,
    write_json(home / "deepspeed.json", plan.deepspeed)
    deepspeed = read_deepspeed_config(home / "deepspeed.json", world_size=1)  # and not after hours
    require_room(plan, settings[0])
    reference = load_settings(["--config", str(reference_config(home, REFERENCE))])
    write_json(home / "plan.json", plan.model_dump(mode="json"))
    note_circumstances(results, plan)
    results.facts.setdefault("command", command)
    results.facts |= {
        "plan": plan.model_dump(mode="json"),
        "steps": settings[0].steps,
        "reference_steps": reference.steps,
        "tokens_per_step": deepspeed["train_batch_size"] * settings[0].data.sequence_length,
    }
    results.save()
    if not is_complete(results, plan):
        complete(results, plan, home, runs)
    return results


def require_room(plan: Plan, settings: Settings) -> None:
    """Refuse texts to decode that are longer than the model's context, which would end them early."""
    longest = (settings.model.config or {}).get("max_position_embeddings")
    tokens = plan.decoding.prompt_tokens + plan.decoding.new_tokens
    if longest is not None and tokens > longest:
        raise UserError(
            f"decoding: prompt_tokens and new_tokens are {tokens} together, and the model has positions for {longest}; "
            "lower one of them"
        )


def note_circumstances(results: Results, plan: Plan) -> None:
    """Forget what a changed plan measures otherwise, and note versions.

    Raises:
        UserError: what is there was measured with other versions.
    """
    before = results.facts.get("plan", {})
    if before.get("decoding") != plan.decoding.model_dump(mode="json"):
        results.forget("decoding/")
    if before.get("timed_steps") != plan.timed_steps:
        results.forget("cost/")
    versions = describe_versions()
    was = results.facts.setdefault("versions", versions)
    if changed := [name for name in {**was, **versions} if was.get(name) != versions.get(name)]:
        raise UserError(
            f"--output {results.file.parent}: was begun with {changed[0]} {was.get(changed[0])}, and here is "
            f"{versions.get(changed[0])}; install that one, or name another folder"
        )


def is_trained(results: Results, plan: Plan) -> bool:
    """Return whether every run that the plan names has ended."""
    return all(results.has(arm, seed, LOSS) for arm in plan.arms for seed in plan.seeds)


def is_decoded(results: Results, plan: Plan) -> bool:
    """Return whether the drafts of every trained run of several heads were counted."""
    runs = [(arm, seed) for arm in plan.arms for seed in plan.seeds]
    return all(results.has(*run, GREEDY) for run in runs if results.has(*run, "evaluation/clean/ce/head_1"))


def has_counts(results: Results, plan: Plan) -> bool:
    """Return whether there is a table of bigrams for every seed."""
    return all(results.has(BIGRAM_TABLE, seed, LOSS) for seed in plan.seeds)


def has_costs(results: Results, plan: Plan) -> bool:
    """Return whether the costs of every arm were measured, all in one process."""
    return all(results.has(arm, None, "cost/seconds") for arm in (*plan.arms, REFERENCE))


def is_complete(results: Results, plan: Plan) -> bool:
    """Return whether everything that the plan names has been measured."""
    return all(done(results, plan) for done in (is_trained, is_decoded, has_counts, has_costs))


def is_reportable(results: Results) -> bool:
    """Return whether the file holds a valid plan, and everything that it names."""
    try:
        return is_complete(results, Plan.model_validate(results.facts.get("plan")))
    except ValidationError:
        return False


def complete(results: Results, plan: Plan, home: Path, runs: list[PlannedRun]) -> None:
    """Do what has not been done."""
    prepare_text(plan, home)
    prompts = held_out_prompts(home / "corpus/validation.jsonl", home / "tokenizer", plan.decoding)
    if not is_trained(results, plan):
        note_commit(results, "runs")
        prepare_references(plan, home)
    record_references(plan, results, home)
    train_missing(runs, results, plan.processes, home)
    torch.set_num_threads(threads_of(plan.processes))  # as the runs had
    if not is_decoded(results, plan):
        note_commit(results, "decoding")
    decode_missing(runs, results, prompts, plan.decoding.new_tokens)
    if not has_counts(results, plan):
        note_commit(results, "count tables")
        add_counts(plan, results, runs)
    if not has_costs(results, plan):
        note_commit(results, "costs")
        add_costs(plan, results, home, runs)


def note_commit(results: Results, part: str) -> None:
    """Add the checkout's commit to those that measured this part of the results."""
    commits = results.facts.setdefault("commits", {}).setdefault(part, [])
    commit = describe_commit(ROOT)
    if commit is not None and commit not in commits:
        commits.append(commit)


def add_counts(plan: Plan, results: Results, runs: list[PlannedRun]) -> None:
    """Count the training text of each seed that has no table yet."""
    baseline = next(run for run in runs if run.arm == plan.baseline)
    settings = load_settings(["--config", str(baseline.config)])
    seeds = [seed for seed in plan.seeds if not results.has(BIGRAM_TABLE, seed, LOSS)]
    rows_per_step = results.facts["tokens_per_step"] // settings.data.sequence_length
    results.add(measure_counts(settings, seeds, rows_per_step))


def add_costs(plan: Plan, results: Results, home: Path, runs: list[PlannedRun]) -> None:
    """Measure what a step of each arm costs, all anew: times of two processes are not comparable."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    first = {run.arm: run for run in reversed(runs)}
    configs = {arm: first[arm].config for arm in plan.arms} | {REFERENCE: reference_config(home, REFERENCE)}
    model = load_wmtp(first[plan.baseline].folder / "model")
    results.facts |= {
        "machine": describe_machine(device),
        "clock": "GPU" if device.type == "cuda" else "CPU",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    results.forget("cost/")
    results.add(list(measure_costs(configs, plan.timed_steps)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Run a controlled experiment and report it.")
    parser.add_argument("plan", type=Path, nargs="?", metavar="PLAN.yaml", help="such as wmtp_lab/plans/cpu.yaml")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the experiment")
    parser.add_argument("--report-only", action="store_true", help="draw the report of DIR/results.parquet")
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    if options.report_only:
        results = open_results(options.output / "results.parquet")
        if not is_reportable(results):
            raise UserError(f"--output {options.output}: holds no complete results.parquet; run the plan to its end")
    elif options.plan is None:
        raise UserError("name a plan, like packages/wmtp-lab/src/wmtp_lab/plans/cpu.yaml")
    else:
        command = shlex.join(["python", "-m wmtp_lab.experiment", *given])
        logging.disable_progress_bar()
        results = experiment(read_plan(options.plan), options.output, command)
    write_report(results, options.output / "report")
    print(f"report: {options.output / 'report/index.html'}; results: {results.file}")


if __name__ == "__main__":
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) == signal.SIG_DFL:  # under nohup a closed terminal ends nothing
            signal.signal(ending, signal.default_int_handler)  # the runs are ended, and save, as at Ctrl-C
    try:
        run(main)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(130)
