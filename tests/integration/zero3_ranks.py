"""One of two ranks that shard policies and references by ZeRO-3: `zero3_ranks.py FOLDER`, the rank by environment.

`FOLDER/job.pt` says on what; `FOLDER/rank{r}.pt` then holds what this rank found.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from wmtp_core import GradientHint
from wmtp_core.losses.hints import StaticHint
from wmtp_models import build_policy, load_tokenizer
from wmtp_train.algorithms import TRAINERS
from wmtp_train.build_models import load_reference
from wmtp_train.data import Batch, score, scoring
from wmtp_train.data.inputs import load_inputs
from wmtp_train.engines.deepspeed.engine import build_engine, read_deepspeed_config
from wmtp_train.ranks.lifecycle import run, start_processes
from wmtp_train.settings.schema import OptimizerSettings, Settings


def gradients(trunk: dict[str, Any], config: Path, micro_batches: list[tuple[Tensor, Tensor, Tensor]]) -> Any:
    """Of a policy on (input ids `[B, S]`, weights `[B, S, H]`, guessed weights `[B, S, H]`), by parameter."""
    horizon = micro_batches[0][1].shape[-1]
    policy = build_policy(trunk, 64, horizon)
    engine = build_engine(policy, read_deepspeed_config(config, 2), OptimizerSettings(), 1)
    for input_ids, weights, guessed in micro_batches:
        guess = GradientHint(StaticHint(guessed), torch.ones(horizon))
        engine.backward((engine(input_ids, guess=lambda _, guess=guess: guess).ce * weights).sum())
        if not engine.is_gradient_accumulation_boundary():
            engine.step()
    return {name: safe_get_full_grad(parameter).clone() for name, parameter in policy.named_parameters()}


def freed_after_forward(trunk: dict[str, Any], config: Path) -> dict[str, bool]:
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
    engine = build_engine(policy, read_deepspeed_config(config, 2), OptimizerSettings(), 1)
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
        found[sharded] = [reference.token_losses(b.input_ids, b.position_ids, b.document_ids) for b in batches]
    return {
        "losses": found,
        "training": any(module.training for module in reference.modules()),
        "requires_grad": any(parameter.requires_grad for parameter in reference.parameters()),
        "dtypes": {parameter.dtype for parameter in reference.parameters()},
        # (all, this rank's part, what lies here between two forwards) in elements
        "kept": [(p.ds_numel, p.ds_tensor.numel(), p.numel()) for p in reference.parameters()],
    }


def training(settings: Settings) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of every micro-batch: the reference's losses, the weights that they led to, the policy's loss."""
    trainer = TRAINERS[settings.algo](settings)
    seen = []
    add = trainer.statistics.add

    def witness(loss: Any) -> None:
        seen.append((loss.signals.reference_ce, loss.weights, loss.policy))
        add(loss)

    trainer.statistics.add = witness
    trainer.train()
    return seen


class Killed(Exception):
    """Stands for a kill of all ranks."""


def scores(settings: Settings, folder: Path, shard_rows: int, micro_batch: int, killed_at: int) -> list[list[Any]]:
    """Score in two goes, the first of which is killed at a forward; the rows of each forward of both."""
    reference = load_reference(settings, load_tokenizer(settings.reference.source))
    prepared = load_inputs(settings, with_scores=False).train.prepared
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
            score(prepared, token_losses, folder, "it", dist.get_rank(), 2, micro_batch, in_step=True)
        except Killed:
            dist.barrier()
        goes.append(rows)
    return goes


def main() -> None:
    folder = Path(sys.argv[1])
    start_processes()
    rank = dist.get_rank()
    job = torch.load(folder / "job.pt", weights_only=False)
    found = {
        "gradients": {
            (name, stage): gradients(trunk, folder / f"gradients{stage}.json", job["micro_batches"][rank])
            for name, trunk in job["trunks"].items()
            for stage in (0, 3)
        },
        "freed": freed_after_forward(job["trunks"]["untied"], folder / "freed.json"),
        "losses": {key: losses(settings, job["batches"][rank]) for key, settings in job["references"].items()},
        "training": {key: training(settings) for key, settings in job["training"].items()},
        "scores": scores(job["scoring"], folder / "scores", *job["shards"]),
    }
    torch.save(found, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    run(main)
