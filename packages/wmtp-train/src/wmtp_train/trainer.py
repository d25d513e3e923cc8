"""The training loop, sealed: algorithms hand it a weighting and never change it."""

import time
from dataclasses import replace
from functools import cached_property

import torch
import torch.distributed as dist
from deepspeed.runtime.engine import DeepSpeedEngine
from tqdm import tqdm

from wmtp_core import HeadWeighting
from wmtp_train.atomic_io import write_json
from wmtp_train.build_models import build_policy_from_settings, load_reference
from wmtp_train.checkpoint import RunCheckpoints, identity, run_lock
from wmtp_train.checkpoint.final_model import save_results
from wmtp_train.checkpoint.rng import reseed
from wmtp_train.data.batch import Batch
from wmtp_train.data.inputs import held_out_batches, load_inputs, tokenizer_from_settings, training_batches
from wmtp_train.engines.deepspeed.engine import backward_and_step, build_engine, read_deepspeed_config
from wmtp_train.metrics.accumulator import MetricAccumulator
from wmtp_train.metrics.annotated_sample import annotate_sample, pick_sample
from wmtp_train.metrics.held_out import evaluate
from wmtp_train.metrics.tensorboard import Monitor
from wmtp_train.ranks.collective import run_on_all_ranks, run_on_rank0
from wmtp_train.ranks.consistency import check_inputs_match
from wmtp_train.ranks.lifecycle import device, fail_on_all_ranks, raise_if_preempted, seed_everything, set_step_timeout
from wmtp_train.ranks.preemption import Interrupted
from wmtp_train.settings.schema import Settings
from wmtp_train.step import LossNormalizers, Objective, ValueObjective


class BaseWmtpTrainer:
    """Trains a policy with a weighting: one forward, weights, one loss, one backward per micro-batch.

    Args:
        settings: the run.
        weighting: how much each prediction is worth.
        uses_reference: the weighting looks at `reference_ce`, scored ahead or computed by a live reference.
        value_objective: what the value head learns from; None builds no value head.

    Raises:
        UserError: whatever in settings, data or models a person can mend; before anything is written.
    """

    def __init__(
        self,
        settings: Settings,
        weighting: HeadWeighting,
        uses_reference: bool = False,
        value_objective: ValueObjective | None = None,
    ) -> None:
        self.settings = settings
        self.rank, self.world, self.device = dist.get_rank(), dist.get_world_size(), device()
        self.deepspeed_config = config = run_on_all_ranks(
            lambda: read_deepspeed_config(settings.deepspeed_config, self.world), "deepspeed_config"
        )
        self.micro_batch: int = config["train_micro_batch_size_per_gpu"]
        self.accumulation: int = config["gradient_accumulation_steps"]
        self.rows_per_step = self.micro_batch * self.accumulation * self.world

        tokenizer = tokenizer_from_settings(settings)
        seed_everything(settings.seed)
        self.policy = policy = run_on_all_ranks(
            lambda: build_policy_from_settings(settings, tokenizer, value_head=value_objective is not None),
            f"model {settings.model.source}",
            "mend that, and start again",
        )
        self.inputs = load_inputs(settings, uses_reference, policy.config.trunk.vocab_size)
        if value_objective and not (self.inputs.train.prepared.has_rewards or self.inputs.train.prepared.has_pairs):
            fail_on_all_ranks(
                "critic-wmtp needs rows with a `reward`, or with `chosen` and `rejected`; data.train has neither"
            )
        reference = None
        if uses_reference and settings.reference.scores is None:
            reference = load_reference(settings, self.inputs.tokenizer, policy.config.trunk.vocab_size)
        check_inputs_match(self.inputs, settings, policy, reference)
        self.monitor: Monitor | None = None
        self.step = 0
        self.consumed_rows = 0
        self.figures: dict[str, float] = {}
        self.evaluated_step = -1
        self.identity = identity(settings, policy, self.inputs.train.fingerprint)
        horizon = settings.model.horizon
        if settings.normalize_by == "selected":
            nothing = torch.zeros(1, horizon, dtype=torch.int64)
            run_on_all_ranks(
                lambda: weighting.selected_counts(nothing, settings.steps), "normalize_by"
            )  # refuses now or never
        self.objective = Objective(
            policy,
            weighting,
            reference,
            value_objective,
            settings.critic.value_coefficient,
            settings.normalize_by,
            horizon,
        )
        self.statistics = MetricAccumulator(horizon, self.inputs.train.prepared.kinds, self.device)

    @cached_property
    def engine(self) -> DeepSpeedEngine:
        """Built when training asks for it: the policy alone can be evaluated, whole and without an optimizer."""
        settings = self.settings
        engine = build_engine(self.policy, self.deepspeed_config, settings.optimizer, settings.steps)
        self.objective = replace(self.objective, policy=engine)
        reseed(settings.seed, 0)  # the initial weights were drawn alike; what dropout draws is each rank's own
        return engine

    @cached_property
    def checkpoints(self) -> RunCheckpoints:
        """The run's checkpoints; they hold the engine's state, and so need the engine."""
        return RunCheckpoints(self.settings, self.engine, self.identity, self.inputs.evaluate)

    def train(self) -> dict[str, float]:
        """Train to `settings.steps`; returns the final held-out figures, by `set/figure`.

        Raises:
            Interrupted: a stop signal came; what was trained is in a checkpoint.
        """
        checkpoints = self.checkpoints  # with the engine, which may refuse its configuration before anything is written
        with run_lock(self.settings.output_dir):
            self.step, self.consumed_rows = checkpoints.resume()
            resumed_at = self.step
            set_step_timeout(self.engine.data_parallel_group)
            try:
                return self.run_steps()
            except Interrupted as stop:
                if self.step > resumed_at:
                    self.save(figures={})  # without an evaluation, for which there may be no time
                raise Interrupted(
                    f"{stop} after {self.step} of {self.settings.steps} steps; {self.checkpoints.last_good()}; "
                    "the same command with --resume goes on"
                ) from None

    def run_steps(self) -> dict[str, float]:
        """The steps that are left, evaluations and checkpoints among them, and the end of the run."""
        settings, is_first = self.settings, self.rank == 0
        content = settings.model_dump(mode="json")
        run_on_rank0(lambda: write_json(settings.output_dir / "settings.json", content), "the settings cannot be saved")
        sets = list(self.inputs.evaluate)
        self.monitor = Monitor(settings.output_dir / "tensorboard", is_first, self.step + 1, sets)
        tokens_per_step = self.rows_per_step * settings.data.sequence_length
        self.loader = training_batches(self.inputs.train, settings, self.micro_batch, self.consumed_rows)
        figures = self.evaluate() if settings.evaluate_every and self.step == 0 else {}
        with tqdm(
            desc=settings.algo,
            total=settings.steps * tokens_per_step,
            initial=self.step * tokens_per_step,
            unit="tok",
            unit_scale=True,
            disable=not is_first,
        ) as progress:
            self.interval_start, self.interval_steps = time.perf_counter(), 0
            while self.step < settings.steps:
                raise_if_preempted()
                self.train_step()
                progress.update(tokens_per_step)
                if self._is_due(settings.log_every):
                    progress.set_postfix(loss=f"{self.log(tokens_per_step):.3f}")
                stopped = time.perf_counter()
                if self._is_due(settings.save_every):
                    self.save(self.evaluate() if settings.keep_best else {})
                if self._is_due(settings.evaluate_every):
                    figures = self.evaluate()
                self.interval_start += time.perf_counter() - stopped  # not part of a step's time
        figures = figures or self.evaluate()  # a resumed run may have had nothing left to do
        self.finish(figures)
        return figures

    def train_step(self) -> None:
        """One optimizer step: count every target of the step first, then a forward and a backward per micro-batch."""
        batches = [next(self.loader).to(self.device) for _ in range(self.accumulation)]
        counts = self.objective.count_targets(batches, self.step)
        self.learning_rate = self.engine.get_lr()[0]
        self.engine.train()
        for batch in batches:
            self.forward_backward(batch, counts)
        self.step += 1
        if not self.engine.fp16_enabled():  # which lowers its loss scale, and leaves the step out
            self.statistics.add_gradient(self.gradient_norm, self.step)
        self.consumed_rows += self.rows_per_step
        self.interval_steps += 1

    def forward_backward(self, batch: Batch, counts: LossNormalizers) -> None:
        """Add one micro-batch's gradient; the engine takes the optimizer step after the last of them."""
        loss = self.objective.loss(batch, self.step, counts)
        # The engine averages over ranks and micro-batches; the loss is a share of a sum over them.
        norm = backward_and_step(self.engine, loss.total * (self.world * self.accumulation))
        if norm is not None:
            self.gradient_norm = norm
        self.statistics.add(loss)

    def log(self, tokens_per_step: int) -> float:
        """Write the interval's figures; returns its mean loss. No figure is read from the device anywhere else."""
        figures = self.statistics.read(self.interval_steps)
        seconds = (time.perf_counter() - self.interval_start) / self.interval_steps
        figures |= {
            "train/learning_rate": self.learning_rate,
            "train/step_seconds": seconds,
            "train/tokens_per_second": tokens_per_step / seconds,
            "train/gradient_norm": float(self.gradient_norm),
        }
        self._monitor(figures)
        self.statistics.refuse_non_finite(self.checkpoints.last_good)
        self.interval_start, self.interval_steps = time.perf_counter(), 0
        return figures["train/loss"]

    def evaluate(self) -> dict[str, float]:
        """Held-out figures by `set/figure`, to TensorBoard too while training. Every rank must call it.

        They are computed once a step, whoever asks.
        """
        if self.evaluated_step == self.step:
            return self.figures
        self.policy.eval()
        figures: dict[str, float] = {}
        for name, held_out in self.inputs.evaluate.items():
            batches = held_out_batches(held_out, self.settings, self.micro_batch)
            found = evaluate(self.objective, batches, self.step, held_out.prepared.kinds)
            figures |= {f"{name}/{figure}": value for figure, value in found.items()}
        self._monitor({f"evaluation/{name}": value for name, value in figures.items()})
        self.figures, self.evaluated_step = figures, self.step
        return figures

    def save(self, figures: dict[str, float]) -> None:
        """A checkpoint with held-out figures, unless a loss or gradient since the start was not finite."""
        self.statistics.refuse_non_finite(self.checkpoints.last_good)
        self.checkpoints.save(self.step, self.consumed_rows, figures)

    def finish(self, figures: dict[str, float]) -> None:
        """The final model, its held-out figures and a passage of text marked by what each head keeps."""
        passages = {}
        for name, held_out in self.inputs.evaluate.items():
            batch = pick_sample(held_out_batches(held_out, self.settings, self.micro_batch))
            passages[name] = annotate_sample(
                self.objective, batch, self.step, self.inputs.tokenizer, held_out.prepared.kinds
            )
        save_results(self.engine, self.inputs.tokenizer, self.settings.output_dir, figures, passages)
        if self.monitor is not None:
            self.monitor.close()

    def _monitor(self, figures: dict[str, float]) -> None:
        if monitor := self.monitor:
            run_on_rank0(
                lambda: monitor.write(figures, self.step), f"{self.settings.output_dir}/tensorboard is broken off"
            )

    def _is_due(self, every: int) -> bool:
        """Whether something that happens every so many steps (0: at the end alone) happens after this one."""
        return self.step == self.settings.steps or (every > 0 and self.step % every == 0)
