"""Ranks that sum up and evaluate their shares of micro-batches; a job for `ranks.on_ranks`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from wmtp_core import HeadWeighting, RandomWeighting, UserError, WeightingInputs
from wmtp_models import MtpOutput
from wmtp_train.data.batch import Batch
from wmtp_train.metrics.accumulator import MetricAccumulator
from wmtp_train.metrics.held_out import evaluate
from wmtp_train.ranks.collective import rank0_first, run_on_rank0_and_broadcast
from wmtp_train.ranks.mesh import Mesh


class Answers:
    """Stands for a step whose policy gives known answers to known batches."""

    def __init__(
        self, micro_batches: list[tuple[Batch, MtpOutput, WeightingInputs]], weighting: HeadWeighting, mesh: Mesh
    ) -> None:
        self.answers = {id(batch): (output, inputs) for batch, output, inputs in micro_batches}
        self.weighting, self.horizon, self.mesh = weighting, micro_batches[0][2].valid.shape[-1], mesh

    def evaluate(
        self, batch: Batch, number: int, predict: bool = False
    ) -> tuple[MtpOutput, WeightingInputs, torch.Tensor]:
        output, inputs = self.answers[id(batch)]
        if inputs.token_labels is None:
            inputs = replace(inputs, token_labels=torch.zeros_like(batch.input_ids))
        return output, inputs, self.weighting.plan(inputs).weights(output.ce, output.values)


def measure(mesh: Mesh, folder: Path, jobs: list[dict[str, Any]]) -> dict[str, Any]:
    job = jobs[mesh.rank]
    names = ("hex", "shuffled")
    statistics = MetricAccumulator(3, names, mesh)
    for loss in job["losses"]:
        statistics.add(loss)
    found = {"statistics": statistics.read(job["steps"])}
    statistics.add(job["bad_loss"])
    try:
        statistics.refuse_non_finite(lambda: "no checkpoint")
    except (UserError, SystemExit) as end:
        found["end"] = end.args[0]
    step = Answers(job["evaluation"], RandomWeighting(0.5, "sequence"), mesh)
    found["evaluation"] = evaluate(step, [batch for batch, _, _ in job["evaluation"]], 0, names)
    trace = folder / "trace"

    def note() -> str:
        before = trace.read_text() if trace.exists() else ""
        trace.write_text(f"{before}{mesh.rank}")
        return before

    found["before_me"] = rank0_first(mesh, note, "the trace")
    found["of_rank_0"] = run_on_rank0_and_broadcast(mesh, lambda: f"found by {mesh.rank}", "the rank")
    return found
