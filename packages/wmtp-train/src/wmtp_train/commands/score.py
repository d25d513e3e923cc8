"""Score a run's data with its reference, once for all: `wmtp score --config …`.

Writes one loss per token beside the packed rows, into `reference.scores`; goes on where a kill left it.
"""

from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from wmtp_core import UserError
from wmtp_models import ReferenceModel, weights_fingerprint
from wmtp_train.build_models import load_reference, use_attention
from wmtp_train.commands.tiny import TINY_CONFIG
from wmtp_train.data.batch import Batch
from wmtp_train.data.loading import DataSpec, data_spec, load_sources, tokenizer_from_settings
from wmtp_train.data.scoring import ScoringJob
from wmtp_train.engines.deepspeed.config import read_deepspeed_config
from wmtp_train.engines.deepspeed.engine import shard_reference
from wmtp_train.out_of_memory import explain_out_of_memory_without_training
from wmtp_train.ranks.collective import START_AGAIN, run_on_all_ranks, run_on_rank0_and_broadcast
from wmtp_train.ranks.lifecycle import run, start_processes
from wmtp_train.settings.command_line import load_settings
from wmtp_train.settings.schema import Settings


def start() -> None:
    """Run the command and end the process."""
    run(main, "the same command goes on where this one ended")


def main() -> None:
    """Score every set that the settings name."""
    mesh = start_processes()  # first, so that what is wrong with the settings is said once

    def read() -> tuple[Settings, str, Path, int]:
        settings = load_settings(tiny_config=TINY_CONFIG)
        source, folder = settings.reference.source, settings.reference.scores
        if source is None or folder is None:
            raise UserError("set reference.source to the reference model, and reference.scores to the folder to write")
        # The micro-batch of training, so that a live reference would compute the very same numbers.
        config = read_deepspeed_config(settings.deepspeed_config, mesh.world)
        return settings, source, folder, config["train_micro_batch_size_per_gpu"]

    settings, source, folder, micro_batch = run_on_all_ranks(mesh, read, "config", START_AGAIN)
    fingerprint = run_on_rank0_and_broadcast(mesh, lambda: weights_fingerprint(source), f"reference {source}")

    def open_reference() -> tuple[ReferenceModel, DataSpec]:
        tokenizer = tokenizer_from_settings(settings)
        reference = load_reference(settings, tokenizer)
        line = use_attention(reference, settings.model.attention, mesh.device, reference.causal_lm.dtype)
        if mesh.is_first:
            print(line)
        return reference, data_spec(settings, tokenizer, reference.causal_lm.config.vocab_size)

    reference, spec = run_on_all_ranks(mesh, open_reference, f"reference {source}", START_AGAIN)
    if settings.reference.sharded:
        shard_reference(reference)
    else:
        reference.to(mesh.device)

    @explain_out_of_memory_without_training(settings, micro_batch, "the reference")
    def token_losses(batch: Batch) -> Tensor:
        here = batch.to(mesh.device)
        return reference.token_losses(here.input_ids, here.position_ids, here.document_ids, bounds=here.bounds)

    for name, data in load_sources(spec, mesh).items():
        length = data.sequence_length
        with tqdm(desc=f"scoring {name}", unit="tok", unit_scale=True, disable=not mesh.is_first) as bar:

            def show(done: int, total: int, bar: tqdm = bar, length: int = length) -> None:
                bar.total = total * length
                bar.update(done * length - bar.n)

            ScoringJob(
                data.prepared,
                token_losses,
                folder / name,
                fingerprint,
                mesh,
                micro_batch,
                settings.reference.scores_dtype,
                settings.reference.dtype,
                settings.reference.sharded,
                show,
            ).run()
