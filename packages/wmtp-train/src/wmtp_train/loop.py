"""The training loop, sealed: an algorithm hands it a step and never changes it."""

import math
import time
from dataclasses import replace
from functools import partial

import torch
from tqdm import tqdm

from wmtp_models import flop_per_token
from wmtp_train.atomic_io import write_json
from wmtp_train.checkpoint.final_model import save_results
from wmtp_train.checkpoint.lock import run_lock
from wmtp_train.checkpoint.rng import reseed
from wmtp_train.checkpoint.run_checkpoints import RunCheckpoints
from wmtp_train.engines.base import Engine
from wmtp_train.metrics.accumulator import MetricAccumulator
from wmtp_train.metrics.mfu import peak_flop_per_second
from wmtp_train.metrics.monitors import open_monitors
from wmtp_train.ranks.collective import run_on_rank0
from wmtp_train.ranks.lifecycle import set_step_timeout
from wmtp_train.ranks.preemption import Interrupted, raise_if_preempted
from wmtp_train.run import Run


class Loop:
    """Trains an opened run: steps, logs, evaluations, checkpoints, and the final model.

    Args:
        run: what is trained.
        engine: that owns the run's policy.

    Attributes:
        flop_per_token: of a forward and backward of the policy, by formula.
        peak: FLOP a second that a device can do at most; None where nobody says.
        number: optimizer steps done.
        gradient_norm: global norm of the newest step's gradient, before clipping.
        metrics: the newest held-out metrics by `set/metric`.
    """

    def __init__(self, run: Run, engine: Engine) -> None:
        self.run = replace(run, step=replace(run.step, policy=engine))
        self.settings, self.mesh, self.engine = run.settings, run.mesh, engine
        reseed(run.settings.seed, 0, run.mesh)  # initial weights were drawn alike; what dropout draws is a rank's own
        self.checkpoints = RunCheckpoints(run.settings, run.mesh, engine, run.fingerprint)
        self.accumulator = MetricAccumulator(run.step.horizon, run.train.contents.label_names, run.mesh)
        self.flop_per_token = flop_per_token(run.policy, run.train.sequence_length)
        self.peak = peak_flop_per_second(run.mesh.device, run.settings.peak_tflops)
        self.number = 0
        self.metrics: dict[str, float] = {}
        self.gradient_norm = torch.zeros(())
        self._evaluated = -1

    def train(self) -> dict[str, float]:
        """Train to `settings.steps`; returns the final held-out metrics, by `set/metric`.

        Raises:
            UserError: another run holds the folder, a checkpoint does not fit, a disk is full, a loss is not finite.
            Interrupted: a stop signal came; what was trained is in a checkpoint.
        """
        with run_lock(self.settings.output_dir, self.mesh):
            self.number, state = self.checkpoints.resume()
            self.batches = self.run.train.training_batches(
                self.mesh, self.run.micro_batch, self.settings.seed, state, self.settings.data.workers
            )
            resumed_at = self.number
            if resumed_at and self.mesh.is_first:
                print(f"going on after step {resumed_at} of {self.settings.steps}", flush=True)
            self.monitors = open_monitors(self.settings, self.mesh, resumed_at + 1 if resumed_at else 0)
            set_step_timeout(self.mesh, self.engine.group)
            try:
                return self._run_steps()
            except Interrupted as stop:
                if self.number > resumed_at:
                    self.save(metrics={})  # without an evaluation, for which there may be no time
                self.monitors.close(finished=False)
                raise Interrupted(
                    f"{stop} after {self.number} of {self.settings.steps} steps; {self.checkpoints.last_good()}; "
                    "the same command with --resume goes on"
                ) from None

    def _run_steps(self) -> dict[str, float]:
        """Take the steps that are left, evaluations and checkpoints among them, and end the run."""
        settings, mesh = self.settings, self.mesh
        write_settings = partial(write_json, settings.output_dir / "settings.json", settings.model_dump(mode="json"))
        run_on_rank0(mesh, write_settings, "the settings cannot be saved")
        if settings.evaluate_every and self.number == 0:
            self.evaluate()
        with tqdm(
            desc=f"training {settings.algo}",
            total=settings.steps,
            initial=self.number,
            unit="step",
            disable=not mesh.is_first,
        ) as progress:
            self._start_interval()
            while self.number < settings.steps:
                raise_if_preempted(mesh)
                self.train_step()
                progress.update()
                if self._is_due(settings.log_every):
                    progress.set_postfix(self.log())
                stopped = time.perf_counter()
                if self._is_due(settings.save_every):
                    self.save(self.evaluate() if settings.keep_best else {})
                if self._is_due(settings.evaluate_every):
                    self.evaluate()
                self.interval_start += time.perf_counter() - stopped  # not part of a step's time
        metrics = self.evaluate()  # a resumed run may have had nothing left to do
        samples = self.run.annotated_samples(self.number)
        save_results(self.engine, mesh, self.run.tokenizer, settings.output_dir, metrics, samples)
        self.monitors.close(finished=True)
        return metrics

    def train_step(self) -> None:
        """Take one optimizer step. Nothing is read from the device."""
        batches = [next(self.batches).to(self.mesh.device) for _ in range(self.run.accumulation)]
        self.learning_rate = self.engine.learning_rate
        losses, norm = self.run.step.train(self.engine, batches, self.number)
        self.number += 1
        self.interval_steps += 1
        for loss in losses:
            self.accumulator.add(loss)
        if norm is not None:
            self.gradient_norm = norm
        if not self.engine.skips_overflow:
            self.accumulator.add_gradient(self.gradient_norm, self.number)

    def log(self) -> dict[str, str]:
        """Write the interval's metrics; returns what the console shows. No metric is read from the device elsewhere.

        The host waits for one copy here, and for nothing else of the device.
        """
        metrics = self.accumulator.read(self.interval_steps, self.gradient_norm)
        seconds = (time.perf_counter() - self.interval_start) / self.interval_steps
        metrics |= {
            "train/learning_rate": self.learning_rate,
            "train/step_seconds": seconds,
            "train/tokens_per_second": self.run.tokens_per_step / seconds,
        }
        shown = {
            "head 0 loss": f"{metrics['ce/head_0']:.3f}",  # the same quantity whatever the algorithm weighs
            "tokens/s": f"{metrics['train/tokens_per_second']:,.0f}",
        }
        if self.peak is not None and math.isfinite(self.flop_per_token):
            tokens = metrics["train/tokens_per_second"]
            metrics["train/mfu"] = tokens * self.flop_per_token / (self.peak * self.mesh.world)
            shown["mfu"] = f"{metrics['train/mfu']:.1%}"
        self._write(metrics)
        self.accumulator.refuse_non_finite(self.checkpoints.last_good)
        self._start_interval()
        return shown

    def evaluate(self) -> dict[str, float]:
        """Return held-out metrics, and write them to the monitors: computed once a step, whoever asks.

        Every rank must call it.
        """
        if self._evaluated != self.number:
            self.metrics = self.run.evaluate(self.number)
            self._evaluated = self.number
            self._write({f"evaluation/{name}": value for name, value in self.metrics.items()})
        return self.metrics

    def save(self, metrics: dict[str, float]) -> None:
        """Save a checkpoint with held-out metrics, unless a loss or gradient since the start was not finite."""
        self.accumulator.refuse_non_finite(self.checkpoints.last_good)
        self.checkpoints.save(self.number, self.batches.state_dict(), metrics)

    def _start_interval(self) -> None:
        self.interval_start, self.interval_steps = time.perf_counter(), 0

    def _write(self, metrics: dict[str, float]) -> None:
        what = f"figures cannot be written to {self.settings.output_dir}"
        run_on_rank0(self.mesh, lambda: self.monitors.write(metrics, self.number), what)

    def _is_due(self, every: int) -> bool:
        """Return whether something that happens every N steps (0: at the end alone) happens after this one."""
        return self.number == self.settings.steps or (every > 0 and self.number % every == 0)
