"""A run, opened once as a value: what trains, evaluates, scores and measures takes one of these."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM, ReferenceModel, apply_liger, share_rows
from wmtp_train.algorithm import Algorithm
from wmtp_train.build_models import build_policy_from_settings, load_reference, prepare_layers, use_attention
from wmtp_train.checkpoint.run_checkpoints import check_keep_best, run_fingerprint
from wmtp_train.data.batch import Batch
from wmtp_train.data.loading import TRAIN, DataSpec, data_spec, load_sources, tokenizer_from_settings, with_scores
from wmtp_train.data.source import BatchSource
from wmtp_train.engines.deepspeed.config import (
    compute_dtype,
    parameter_dtype,
    read_deepspeed_config,
    takes_weights_of_rank0,
)
from wmtp_train.engines.deepspeed.engine import shard_reference
from wmtp_train.metrics.annotated_sample import annotate_sample, pick_sample
from wmtp_train.metrics.held_out import evaluate
from wmtp_train.metrics.monitors import require_libraries
from wmtp_train.ranks.collective import START_AGAIN, run_on_all_ranks
from wmtp_train.ranks.consistency import check_inputs_match
from wmtp_train.ranks.lifecycle import seed_everything
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.ranks.preemption import raise_if_preempted
from wmtp_train.settings.schema import Settings
from wmtp_train.skeleton import build_on_rank0
from wmtp_train.step import Step


@dataclass(frozen=True)
class Run:
    """Everything that settings name, found, checked and alike on every rank; nothing is written yet.

    Attributes:
        settings: of the run; `steps` is what `epochs` come to.
        mesh: the processes.
        engine_config: DeepSpeed's JSON, checked and completed.
        tokenizer: the policy's.
        train: the training rows.
        held_out: the held-out sets by name.
        policy: the model on the CPU; ranks other than 0 may hold a skeleton of it, until an engine or
            `skeleton.receive_parameters` gives them its parameters.
        step: the loss of the policy under the run's algorithm.
    """

    settings: Settings
    mesh: Mesh
    engine_config: dict[str, Any]
    tokenizer: PreTrainedTokenizerFast
    train: BatchSource
    held_out: Mapping[str, BatchSource]
    policy: MtpForCausalLM
    step: Step

    @classmethod
    def open(cls, settings: Settings, algorithm: Algorithm, mesh: Mesh, dtype: torch.dtype | None = None) -> "Run":
        """Open a run. Every rank must call it; what fails on one rank fails on all of them, in one line.

        Args:
            settings: of the run.
            algorithm: that `settings.algo` names.
            mesh: the processes.
            dtype: what the policy is going to compute in; None: what DeepSpeed's JSON says.

        Raises:
            UserError: whatever in settings, data or models the user can fix.
        """
        has_values = algorithm.value_objective is not None

        def log_choice(line: str) -> None:
            if mesh.is_first:
                print(line, flush=True)

        def open_config() -> tuple[dict[str, Any], PreTrainedTokenizerFast]:
            if mesh.is_first:
                require_libraries(settings.monitor)
            config = read_deepspeed_config(settings.deepspeed_config, mesh.world)
            if settings.model.compile and config.get("zero_optimization", {}).get("stage", 0) == 3:
                raise UserError(
                    "model.compile: at ZeRO stage 3 DeepSpeed's hooks gather parameters inside a layer, which cannot "
                    "be compiled so: set it to false, or take stage 1 or 2"
                )
            return config, tokenizer_from_settings(settings)

        what = "the run cannot be opened"
        config, tokenizer = run_on_all_ranks(mesh, open_config, what, START_AGAIN)

        def build() -> MtpForCausalLM:
            seed_everything(settings.seed)
            return build_policy_from_settings(settings, tokenizer, has_values, dtype or parameter_dtype(config))

        from_rank0 = mesh.world > 1 and takes_weights_of_rank0(config)
        policy = build_on_rank0(build, mesh, what) if from_rank0 else run_on_all_ranks(mesh, build, what, START_AGAIN)

        def prepare() -> DataSpec:
            prepare_layers(policy, settings)
            computes_in = dtype or compute_dtype(config)
            log_choice(use_attention(policy, settings.model.attention, mesh.device, computes_in))
            return data_spec(settings, tokenizer, policy.config.text.vocab_size)

        spec = run_on_all_ranks(mesh, prepare, what, START_AGAIN)
        mesh = mesh.share_rows(config["sequence_parallel_size"])
        sources = load_sources(spec, mesh)
        if algorithm.needs_reference:
            sources = with_scores(sources, settings, mesh)

        def open_rest() -> tuple[Step, ReferenceModel | None]:
            algorithm.check_contents(sources[TRAIN].contents, settings.algo)
            check_keep_best(settings, settings.data.evaluate)
            live = algorithm.needs_reference and settings.reference.scores is None
            reference = load_reference(settings, spec.tokenizer, spec.vocab_size) if live else None
            if reference is not None:
                dtype = reference.causal_lm.dtype
                log_choice(use_attention(reference, settings.model.attention, mesh.device, dtype))
            check_sharing(settings, mesh.sequence.count)
            share_rows(policy, mesh.sequence)
            if reference is not None:
                share_rows(reference, mesh.sequence)
            step = Step(
                policy,
                algorithm.weighting(settings, mesh),
                settings.model.horizon,
                mesh,
                reference,
                algorithm.value_objective(settings) if algorithm.value_objective else None,
                settings.critic.value_coefficient,
                settings.normalize_by,
                head_coefficients(settings, mesh),
            )
            return step, reference

        step, reference = run_on_all_ranks(mesh, open_rest, what, START_AGAIN)
        fingerprints = {name: source.fingerprint for name, source in sources.items()}
        check_inputs_match(fingerprints, settings, policy, reference, mesh, from_rank0)
        if reference is not None and settings.reference.sharded:
            shard_reference(reference)
        elif reference is not None:
            reference.to(mesh.device)
        if settings.model.liger:
            apply_liger(policy)
        train = sources.pop(TRAIN)
        run = cls(settings, mesh, config, spec.tokenizer, train, sources, policy, step)
        if settings.epochs is not None:
            steps = math.ceil(settings.epochs * train.row_count / run.rows_per_step - 1e-9)  # 0.1 · 30 is above 3
            run = replace(run, settings=settings.model_copy(update={"steps": max(steps, 1)}))
        return run

    @property
    def micro_batch(self) -> int:
        """Rows of a micro-batch on each rank."""
        rows: int = self.engine_config["train_micro_batch_size_per_gpu"]
        return rows

    @property
    def accumulation(self) -> int:
        """Micro-batches of an optimizer step on each rank."""
        count: int = self.engine_config["gradient_accumulation_steps"]
        return count

    @property
    def rows_per_step(self) -> int:
        """Rows that one optimizer step sees over all ranks."""
        return self.micro_batch * self.accumulation * self.mesh.data_world

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step sees over all ranks, padding included."""
        return self.rows_per_step * self.train.sequence_length

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What makes this run this one and no other, as JSON."""
        return run_fingerprint(self.settings, self.policy, self.train.fingerprint)

    def evaluate(self, number: int) -> dict[str, float]:
        """Evaluate the policy as it is after `number` steps on every held-out set. Every rank must call it.

        Returns:
            Held-out metrics by `set/metric`, see `metrics.held_out.evaluate`.
        """
        self.policy.eval()
        metrics: dict[str, float] = {}
        for name, source in self.held_out.items():
            found = evaluate(self.step, self._batches(source), number, source.contents.label_names)
            metrics |= {f"{name}/{metric}": value for metric, value in found.items()}
        return metrics

    def annotated_samples(self, number: int) -> dict[str, Any]:
        """Annotate a sample of every held-out set with what each head keeps, as JSON. Every rank must call it."""
        self.policy.eval()
        samples = {}
        for name, source in self.held_out.items():
            batch, names = pick_sample(self._batches(source)), source.contents.label_names
            samples[name] = annotate_sample(self.step, batch, number, self.tokenizer, names)
        return samples

    def _batches(self, source: BatchSource) -> Iterator[Batch]:
        """Yield this rank's share of a held-out set where it computes; between batches a stop signal ends it."""
        for batch in source.held_out_batches(self.mesh, self.micro_batch, self.settings.data.evaluation_rows):
            raise_if_preempted(self.mesh)
            yield batch.to(self.mesh.device)


def check_sharing(settings: Settings, sharing: int) -> None:
    """Refuse rows that cannot be cut into equal slices, and losses that look beyond a slice.

    Args:
        settings: of the run.
        sharing: how many processes share a row.

    Raises:
        UserError: `sharing` does not divide their length, or heads learn from a head 0 that lies elsewhere.
    """
    if sharing > 1 and settings.objective == "distill":
        raise UserError(
            f"objective: distill compares a head with head 0 at later positions, and with sequence_parallel_size "
            f"{sharing} these may lie on another process: remove sequence_parallel_size"
        )
    length = settings.data.sequence_length
    if length % sharing:
        raise UserError(
            f"data.sequence_length is {length}, which sequence_parallel_size {sharing} does not divide; "
            "make it a multiple"
        )


def head_coefficients(settings: Settings, mesh: Mesh) -> Tensor | None:
    """Return the coefficients of the heads' losses, float32 `[H]` where this process computes; None: all 1.

    Raises:
        UserError: not one for each head, or all of them 0.
    """
    given, horizon = settings.head_coefficients, settings.model.horizon
    if given is None:
        return None
    if isinstance(given, list) and (len(given) != horizon or not any(given)):
        raise UserError(f"head_coefficients is {given}; give a number for each of the {horizon} heads, and not all 0")
    decayed = given if isinstance(given, list) else [given**head for head in range(horizon)]
    return torch.tensor(decayed, dtype=torch.float32, device=mesh.device)
