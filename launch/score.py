"""Score a run's data with its reference, once for all: `deepspeed launch/score.py --config …`, or with plain python.

Writes one loss per token beside the packed rows, into `reference.scores`; goes on where a kill left it.
"""

import torch
import torch.distributed as dist
from tqdm import tqdm

from tiny import TINY_CONFIG
from wmtp_models import weights_fingerprint
from wmtp_train.command_line import load_settings
from wmtp_train.data import Batch, score
from wmtp_train.engine import read_deepspeed_config
from wmtp_train.inputs import open_inputs, open_tokenizer
from wmtp_train.models import open_reference
from wmtp_train.processes import device, refuse_alike, run, start_processes
from wmtp_train.together import found_by_rank_0, together


def main() -> None:
    """Score every set that the settings name."""
    start_processes()  # first, so that what is wrong with the settings is said once
    settings = together(lambda: load_settings(tiny_config=TINY_CONFIG), "config")
    source, folder = settings.reference.source, settings.reference.scores
    if source is None or folder is None:
        refuse_alike("set reference.source to the reference model, and reference.scores to the folder to write")
    rank, world = dist.get_rank(), dist.get_world_size()
    # The micro-batch of training, so that a live reference would compute the very same numbers.
    deepspeed = together(lambda: read_deepspeed_config(settings.deepspeed_config, world), "deepspeed_config")
    micro_batch = deepspeed["train_micro_batch_size_per_gpu"]
    fingerprint = found_by_rank_0(lambda: weights_fingerprint(source), f"reference {source}")
    reference = open_reference(settings, open_tokenizer(settings))
    inputs = open_inputs(settings, with_scores=False, vocab_size=reference.causal_lm.config.vocab_size)

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
