"""Optimizer steps of the trainer, as `launch/train.py` takes them: seconds, tokens, utilization, peak memory."""

import gc
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from gpu_checking.environment import available_memory
from gpu_checking.parts import Task
from gpu_checking.random_corpus import write_corpus, write_reference, write_tokenizer
from gpu_checking.record import Record
from gpu_checking.sizes import QUICK, SIZES, Size
from wmtp_lab.tables import DASH, markdown_table
from wmtp_models import weights_fingerprint
from wmtp_train.algorithms import trainer_class
from wmtp_train.build_models import load_reference
from wmtp_train.data.batch import Batch
from wmtp_train.data.loading import TRAIN, data_spec, load_sources, tokenizer_from_settings
from wmtp_train.data.scoring import ScoringJob
from wmtp_train.ranks.lifecycle import start_processes
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.settings.schema import Settings
from wmtp_train.trainer import BaseWmtpTrainer

_HEAD = [
    "model",
    "algorithm",
    "parameters",
    "tokens a step",
    "s a step",
    "tokens/s",
    "MFU",
    "peak memory",
    "s to start",
]
_NOTE = (
    "Steps of the trainer on random tokens, four heads, bf16, packed rows, scored ahead where there is a reference. "
    "MFU is the log's own, over the data sheet's peak; recomputation does not count, nor does what "
    "selection saves. Peak memory is what torch held on the device."
)


def run(record: Record, task: Task) -> None:
    """Train every size that fits with each of its algorithms for a few steps."""
    mesh = start_processes()
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for size in QUICK if task.quick else SIZES:
            available = available_memory()
            if available < size.main_memory:
                needed = f"needs {size.main_memory / 1e9:.0f} GB of main memory, and {available / 1e9:.0f} GB are free"
                record.miss(size.name, needed)
                continue
            home = Path(folder) / size.name.replace(" ", "_")
            for algorithm in size.algorithms:
                try:
                    found = _measure(size, algorithm, home, mesh)
                except torch.OutOfMemoryError as error:
                    record.miss(f"{size.name}, {algorithm}", str(error).splitlines()[0])
                else:
                    rows.append(_row(size, algorithm, found))
                    record.sections = [_NOTE, markdown_table(_HEAD, rows)]
                    record.put(f"{size.name}, {algorithm}", found)
                gc.collect()  # engines hold themselves in circles
                if mesh.device.type == "cuda":
                    torch.cuda.empty_cache()


def _measure(size: Size, algorithm: str, home: Path, mesh: Mesh) -> dict[str, Any]:
    began = time.perf_counter()
    if mesh.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trainer = open_trainer(size, algorithm, home, mesh)
    start_seconds = time.perf_counter() - began
    seconds = _seconds_a_step(trainer, size.steps, mesh)
    tokens = trainer.run.tokens_per_step
    flop, peak = tokens * trainer.loop.flop_per_token, trainer.loop.peak
    return {
        "parameters": sum(getattr(p, "ds_numel", p.numel()) for p in trainer.run.policy.parameters()),
        "tokens_per_step": tokens,
        "step_seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "step_flop": flop,
        "mfu": flop / seconds / peak if peak else None,
        "peak_bytes": torch.cuda.max_memory_allocated() if mesh.device.type == "cuda" else None,
        "start_seconds": start_seconds,
    }


def _seconds_a_step(trainer: BaseWmtpTrainer, steps: int, mesh: Mesh) -> float:
    """Return the mean seconds of the loop's own steps, timed as between two logs: the device is waited for twice."""
    loop, run = trainer.loop, trainer.run
    loop.batches = run.train.training_batches(mesh, run.micro_batch, run.settings.seed, {}, run.settings.data.workers)
    loop.interval_steps = 0
    for _ in range(max(1, steps // 2)):
        loop.train_step()
    loop.accumulator.read(loop.interval_steps)  # waits for the device
    began = time.perf_counter()
    for _ in range(steps):
        loop.train_step()
    loop.accumulator.read(steps)
    return (time.perf_counter() - began) / steps


def open_trainer(size: Size, algorithm: str, home: Path, mesh: Mesh) -> BaseWmtpTrainer:
    """Open a run of that size in the folder `home`; data, tokenizer and scores are made there first if need be."""
    corpus, tokenizer, reference, scores = (home / name for name in ("train.jsonl", "tokenizer", "reference", "scores"))
    if not home.is_dir():
        home.mkdir()
        write_tokenizer(tokenizer, size.vocab_size)
        write_corpus(corpus, size.vocab_size, 8 * size.rows * size.length, size.length)
        write_reference(reference, size.vocab_size, size.length)
        (home / "deepspeed.json").write_text(json.dumps(size.deepspeed))
    settings = Settings(
        algo=algorithm,
        steps=10_000,
        output_dir=home / algorithm,
        deepspeed_config=home / "deepspeed.json",
        data={
            "train": [str(corpus)],
            "tokenizer": str(tokenizer),
            "sequence_length": size.length,
            "cache_dir": home / "cache",
        },
        model={"config": size.trunk, "gradient_checkpointing": size.checkpointing},
        reference={"source": str(reference), "scores": scores},
    )
    trainer = trainer_class(algorithm)
    if trainer.algorithm.needs_reference and not scores.is_dir():
        _score(settings, size.rows, mesh)
    return trainer(settings, mesh)


def _score(settings: Settings, micro_batch: int, mesh: Mesh) -> None:
    """Write the reference's losses, as launch/score.py does."""
    tokenizer = tokenizer_from_settings(settings)
    reference = load_reference(settings, tokenizer).to(mesh.device)
    source, folder = settings.reference.source, settings.reference.scores
    assert source is not None
    assert folder is not None
    data = load_sources(data_spec(settings, tokenizer), mesh)[TRAIN]

    def token_losses(batch: Batch) -> torch.Tensor:
        here = batch.to(mesh.device)
        return reference.token_losses(here.input_ids, here.position_ids, here.document_ids)

    ScoringJob(data.prepared, token_losses, folder / TRAIN, weights_fingerprint(source), mesh, micro_batch).run()


def _row(size: Size, algorithm: str, found: dict[str, Any]) -> list[str]:
    mfu, peak = found["mfu"], found["peak_bytes"]
    return [
        size.name,
        algorithm,
        f"{found['parameters']:,}",
        f"{found['tokens_per_step']:,}",
        f"{found['step_seconds']:.3f}",
        f"{found['tokens_per_second']:,.0f}",
        DASH if mfu is None else f"{mfu:.1%}",
        DASH if peak is None else f"{peak / 1e9:.1f} GB",
        f"{found['start_seconds']:.0f}",
    ]
