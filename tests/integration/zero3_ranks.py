"""One of two ranks that shard policies and references by ZeRO-3: `zero3_ranks.py FOLDER`, the rank by environment.

`FOLDER/job.pt` says on what; `FOLDER/rank{r}.pt` then holds what this rank found.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_get_full_grad
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from wmtp_core import GradientPlan, WeightHint, WeightPlan
from wmtp_core.losses.hints import StaticHint
from wmtp_models import build_policy, checkpoint_activations, load_tokenizer
from wmtp_train.algorithms import TRAINERS
from wmtp_train.build_models import load_reference
from wmtp_train.data import scoring
from wmtp_train.data.batch import Batch
from wmtp_train.data.loading import TRAIN, data_spec, load_sources, tokenizer_from_settings
from wmtp_train.engines.deepspeed.config import read_deepspeed_config
from wmtp_train.engines.deepspeed.engine import ZeroEngine, shard_reference
from wmtp_train.ranks.lifecycle import run, start_processes
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.settings.schema import Settings
from wmtp_train.settings.sections import OptimizerSettings


class Hinted(WeightPlan):
    """A plan whose hint is known, right or wrong."""

    counts = None

    def __init__(self, hinted: Tensor) -> None:
        self.hinted = hinted

    def weights(self, ce: Tensor, values: Tensor | None = None) -> Tensor:
        raise AssertionError("the test knows the weights")

    def hint(self, values: Tensor | None = None) -> WeightHint:
        return StaticHint(self.hinted)


def gradients(
    mesh: Mesh,
    trunk: dict[str, Any],
    head_kind: str,
    config: Path,
    micro_batches: list[tuple[Tensor, Tensor, Tensor]],
    checkpointed: bool = False,
) -> Any:
    """Of a policy on (input ids `[B, S]`, weights `[B, S, H]`, hinted weights `[B, S, H]`), by parameter."""
    horizon = micro_batches[0][1].shape[-1]
    policy = build_policy(trunk, 64, horizon, head_kind=head_kind)
    if checkpointed:
        checkpoint_activations(policy)
    engine = ZeroEngine(policy, read_deepspeed_config(config, 2), OptimizerSettings(), 1, mesh)._engine
    for input_ids, weights, hinted in micro_batches:
        plan = GradientPlan(Hinted(hinted), torch.ones(horizon))
        engine.backward((engine(input_ids, plan=plan).ce * weights).sum())
        if not engine.is_gradient_accumulation_boundary():
            engine.step()
    return {name: safe_get_full_grad(parameter).clone() for name, parameter in policy.named_parameters()}


def freed_after_forward(mesh: Mesh, trunk: dict[str, Any], config: Path) -> dict[str, bool]:
    """By name of a linear layer: whether its gathered weight is gone between forward and backward."""
    policy = build_policy(trunk, 64, 3)
    gathered = {}
    for name, module in policy.named_modules():
        if isinstance(module, nn.Linear) and ".layers." in name:

            def noting(
                x: Tensor, name: str = name, module: nn.Linear = module, forward: Any = module.forward
            ) -> Tensor:
                gathered[name] = StorageWeakRef(module.weight.untyped_storage())
                return forward(x)

            module.forward = noting
    engine = ZeroEngine(policy, read_deepspeed_config(config, 2), OptimizerSettings(), 1, mesh)._engine
    output = engine(torch.arange(12)[None])
    freed = {name: storage.expired() for name, storage in gathered.items()}
    engine.backward(output.ce.sum())
    return freed


def losses(settings: Settings, batches: list[Batch]) -> dict[str, Any]:
    """Of a whole and of a sharded reference on the same batches, and what this rank keeps of the sharded one."""
    tokenizer = load_tokenizer(settings.reference.source)
    found = {}
    for sharded in (False, True):
        section = settings.reference.model_copy(update={"sharded": sharded})
        reference = load_reference(settings.model_copy(update={"reference": section}), tokenizer)
        if sharded:
            shard_reference(reference)
        found[sharded] = [reference.token_losses(b.input_ids, b.position_ids, b.document_ids) for b in batches]
    return {
        "losses": found,
        "training": any(module.training for module in reference.modules()),
        "requires_grad": any(parameter.requires_grad for parameter in reference.parameters()),
        "dtypes": {parameter.dtype for parameter in reference.parameters()},
        # (all, this rank's part, what lies here between two forwards) in elements
        "kept": [(p.ds_numel, p.ds_tensor.numel(), p.numel()) for p in reference.parameters()],
    }


def training(mesh: Mesh, settings: Settings) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of every micro-batch: the reference's losses, the weights that they led to, the policy's loss."""
    trainer = TRAINERS[settings.algo](settings, mesh)
    seen = []
    add = trainer.loop.accumulator.add

    def witness(loss: Any) -> None:
        seen.append((loss.inputs.reference_ce, loss.weights, loss.policy))
        add(loss)

    trainer.loop.accumulator.add = witness
    trainer.train()
    return seen


class Killed(Exception):
    """Stands for a kill of all ranks."""


def scores(
    mesh: Mesh, settings: Settings, folder: Path, shard_rows: int, micro_batch: int, killed_at: int
) -> list[list[Any]]:
    """Score in two goes, the first of which is killed at a forward; the rows of each forward of both."""
    reference = load_reference(settings, load_tokenizer(settings.reference.source))
    if settings.reference.sharded:
        shard_reference(reference)
    prepared = load_sources(data_spec(settings, tokenizer_from_settings(settings)), mesh)[TRAIN].prepared
    scoring.SHARD_ROWS = shard_rows
    goes = []
    for limit in (killed_at, sys.maxsize):
        rows: list[list[int]] = []

        def token_losses(batch: Batch, rows: list[Any] = rows, limit: int = limit) -> Tensor:
            if len(rows) == limit:
                raise Killed
            rows.append(batch.row_ids.tolist())
            return reference.token_losses(batch.input_ids, batch.position_ids, batch.document_ids)

        try:
            scoring.ScoringJob(prepared, token_losses, folder, "it", mesh, micro_batch, lockstep=True).run()
        except Killed:
            mesh.barrier()
        goes.append(rows)
    return goes


def main() -> None:
    folder = Path(sys.argv[1])
    mesh = start_processes()
    rank = mesh.rank
    job = torch.load(folder / "job.pt", weights_only=False)
    micro_batches = job["micro_batches"][rank]
    found = {
        "gradients": {
            (name, kind, stage): gradients(mesh, trunk, kind, folder / f"gradients{stage}.json", micro_batches)
            for name, trunk in job["trunks"].items()
            for kind in job["head_kinds"]
            for stage in (0, 3)
        },
        "checkpointed": {
            kind: gradients(mesh, job["trunks"]["untied"], kind, folder / "gradients3.json", micro_batches, True)
            for kind in job["head_kinds"]
        },
        "freed": freed_after_forward(mesh, job["trunks"]["untied"], folder / "freed.json"),
        "losses": {key: losses(settings, job["batches"][rank]) for key, settings in job["references"].items()},
        "training": {key: training(mesh, settings) for key, settings in job["training"].items()},
        "scores": scores(mesh, job["scoring"], folder / "scores", *job["shards"]),
    }
    torch.save(found, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    run(main)
