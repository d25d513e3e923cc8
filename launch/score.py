"""Score a run's data with its reference, once for all: `deepspeed launch/score.py --config …`, or with plain python.

Writes one loss per token beside the packed rows, into `reference.scores`; goes on where a kill left it.
"""

import torch
import torch.distributed as dist
from tqdm import tqdm

from tiny import TINY_CONFIG
from wmtp_models import weights_fingerprint
from wmtp_train.build_models import load_reference
from wmtp_train.data import Batch, score
from wmtp_train.data.inputs import load_inputs, tokenizer_from_settings
from wmtp_train.engines.deepspeed.engine import read_deepspeed_config
from wmtp_train.ranks.collective import run_on_all_ranks, run_on_rank0_and_broadcast
from wmtp_train.ranks.lifecycle import device, fail_on_all_ranks, run, start_processes
from wmtp_train.settings.command_line import load_settings


def main() -> None:
    """Score every set that the settings name."""
    start_processes()  # first, so that what is wrong with the settings is said once
    settings = run_on_all_ranks(lambda: load_settings(tiny_config=TINY_CONFIG), "config")
    source, folder = settings.reference.source, settings.reference.scores
    if source is None or folder is None:
        fail_on_all_ranks("set reference.source to the reference model, and reference.scores to the folder to write")
    rank, world = dist.get_rank(), dist.get_world_size()
    # The micro-batch of training, so that a live reference would compute the very same numbers.
    deepspeed = run_on_all_ranks(lambda: read_deepspeed_config(settings.deepspeed_config, world), "deepspeed_config")
    micro_batch = deepspeed["train_micro_batch_size_per_gpu"]
    fingerprint = run_on_rank0_and_broadcast(lambda: weights_fingerprint(source), f"reference {source}")
    reference = load_reference(settings, tokenizer_from_settings(settings))
    inputs = load_inputs(settings, with_scores=False, vocab_size=reference.causal_lm.config.vocab_size)

    def token_losses(batch: Batch) -> torch.Tensor:
        here = batch.to(device())
        return reference.token_losses(here.input_ids, here.position_ids, here.document_ids)

    for name, data in inputs.sets().items():
        length = data.prepared.sequence_length
        with tqdm(desc=f"score {name}", unit="tok", unit_scale=True, disable=rank != 0) as bar:

            def show(done: int, total: int, bar: tqdm = bar, length: int = length) -> None:
                bar.total = total * length
                bar.update(done * length - bar.n)

            score(
                data.prepared,
                token_losses,
                folder / name,
                fingerprint,
                rank,
                world,
                micro_batch,
                show,
                settings.reference.scores_dtype,
                settings.reference.dtype,
                in_step=settings.reference.sharded,
            )


if __name__ == "__main__":
    run(main, "the same command goes on where this one ended")
