"""The weighted multi-token loss in `transformers.Trainer`, and in what derives from it, such as TRL's `SFTTrainer`."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wmtp_core import (
    GradientPlan,
    HeadWeighting,
    UniformWeighting,
    UserError,
    WeightingInputs,
    mtp_targets,
    weighted_mtp_loss,
)
from wmtp_models.policy import MtpForCausalLM
from wmtp_models.reference import ReferenceModel
from wmtp_models.trunk.packing_layout import infer_layout

if TYPE_CHECKING:
    from transformers import Trainer
else:
    Trainer = object  # the class it is mixed into brings it, and with it what `Trainer` needs installed

_LAYOUT = ("position_ids", "document_ids", "attention_mask")


class MtpTrainerMixin(Trainer):
    """Trains all heads of a `MtpForCausalLM` where it stands first: `class MtpTrainer(MtpTrainerMixin, Trainer): ...`.

    The loss is `wmtp_core.weighted_mtp_loss`. Its denominators N_h are counted over all micro-batches and processes of
    an optimizer step, before the first forward; so neither accumulation nor the number of processes changes what a step
    learns, unless the rule compares tokens of different rows: it sees those of a micro-batch.

    Batches may be padded at the right, carry −100 labels, or be packed with position ids that restart, as `SFTTrainer`
    packs them.

    Logs have `ce/head_{h}` (nats, over valid targets) and `selected_ratio/head_{h}` beside the trainer's own, and
    evaluations the same as `eval_ce/head_{h}`. `SFTTrainer`'s own entropy and token accuracy are not computed.
    `compute_metrics` of `Trainer` is given the losses `[B, S, H]` and where they are valid, and no logits.

    Args:
        model: what is trained.
        *args: as the trainer takes them.
        weighting: how much each prediction is worth; by default all alike. A top k over the rows of all processes needs
            their group.
        reference: gives the reference losses that rules such as `Rho1Weighting` compare with, in a forward a batch.
        **kwargs: as the trainer takes them.

    Raises:
        UserError: another model, one with a value head, which would not learn here, or something that the trainer was
            given is not part of this loss.
    """

    loss_is_scaled_for_ga = True  # by transformers' name: what `compute_loss` returns is a share of the whole step's

    def __init__(
        self,
        model: MtpForCausalLM,
        *args: Any,
        weighting: HeadWeighting | None = None,
        reference: ReferenceModel | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(model, MtpForCausalLM):
            raise UserError(f"model is a {type(model).__name__}: wrap it with MtpForCausalLM.wrap(model, horizon=4)")
        if model.value_head is not None:
            raise UserError("model has a value head, which does not learn here: drop it with model.remove_value_head()")
        if not hasattr(super(), "loss_is_scaled_for_ga"):
            raise UserError("this transformers would divide the loss by the accumulation again: take 5.23 or newer")
        model.generation_config = model.unwrap().generation_config  # where TRL notes the padding token
        super().__init__(model, *args, **kwargs)
        self._refuse_what_differs()
        self.weighting = weighting or UniformWeighting()
        self.reference = None if reference is None else reference.to(self.args.device)
        self._counts = torch.zeros(model.config.horizon, dtype=torch.int64, device=self.args.device)  # N_h of the step
        self._rows = 0  # of this step, over all processes, that had their forward
        self._sums = self._no_sums()

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """Take the micro-batches of an optimizer step, and count every head's targets over all processes."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = torch.zeros_like(self._counts)
        for batch in batches:
            counts += self._targets(batch)[0].sum(dim=(0, 1)).to(device)
        self._counts, self._rows = self.accelerator.reduce(counts, "sum"), 0
        return batches, items

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return a micro-batch's share of the step's loss; in evaluation, the loss of the batch by itself."""
        training, processes = model.training, self.accelerator.num_processes
        batch = {name: inputs[name] for name in ("input_ids", "labels", *_LAYOUT) if inputs.get(name) is not None}
        valid, documents = self._targets(batch)
        counts = self._counts if training else valid.sum(dim=(0, 1))
        plan = self.weighting.plan(self._weighting_inputs(batch, valid, documents))
        output = model(**batch, plan=GradientPlan(plan, 1 / counts.clamp(min=1)) if training else None)
        ce = output.ce.detach()
        with torch.no_grad():
            weights = plan.weights(ce)
        loss = weighted_mtp_loss(output.losses, weights, counts)
        if training:
            loss = loss * processes  # whose gradients are averaged
        if output.auxiliary_loss is not None:
            loss = loss + output.auxiliary_loss / (self.current_gradient_accumulation_steps if training else 1)
        self._sums += torch.stack([part.double().sum(dim=(0, 1)) for part in (ce, weights != 0, valid)])
        return (loss, {"loss": loss, "ce": ce, "valid": valid}) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the heads' figures where the training loss is among it."""
        if "loss" in logs:
            logs.update(self._end_interval())
        super().log(logs, *args, **kwargs)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        """Evaluate, with the heads' figures of the whole set among the metrics."""
        interval = self._sums  # of the training that goes on afterwards
        self._sums = self._no_sums()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics.update({f"{metric_key_prefix}_{name}": x for name, x in self._end_interval().items()})
        self._sums = interval
        return output

    def _refuse_what_differs(self) -> None:
        asked = {
            "compute_loss_func": self.compute_loss_func,
            "label_smoothing_factor": self.args.label_smoothing_factor,
            "loss_type": getattr(self.args, "loss_type", "nll") != "nll",  # TRL's
        }
        for name, wanted in asked.items():
            if wanted:
                raise UserError(f"{name}: the loss is the weighted multi-token loss here, which has none: leave it out")
        if self.args.n_gpu > 1:
            raise UserError(
                f"one process sees {self.args.n_gpu} GPUs: start one for each by torchrun or accelerate launch, or set "
                "CUDA_VISIBLE_DEVICES to one of them"
            )
        if self.get_cp_size() * self.get_sp_size() > 1:
            raise UserError("processes share rows by context or sequence parallelism, which this loss does not know")

    def _targets(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Return where heads have targets, bool `[B, S, H]`, and the documents int64 `[B, S]`."""
        labels = batch["input_ids"] if batch.get("labels") is None else batch["labels"]
        _, documents = infer_layout(*(batch.get(name) for name in _LAYOUT))
        return mtp_targets(labels, self.model.config.horizon, batch.get("attention_mask"), documents)[1], documents

    def _weighting_inputs(self, batch: dict[str, Any], valid: Tensor, documents: Tensor | None) -> WeightingInputs:
        rows, accelerator = len(valid), self.accelerator
        first = self._rows + accelerator.process_index * rows
        self._rows += accelerator.num_processes * rows
        reference_ce = None
        if self.reference is not None:
            reference_ce = self.reference.token_losses(batch["input_ids"], *(batch.get(name) for name in _LAYOUT))
        return WeightingInputs(
            valid,
            step=self.state.global_step,
            row_ids=torch.arange(first, first + rows, device=valid.device),
            document_ids=documents,
            reference_ce=reference_ce,
        )

    def _no_sums(self) -> Tensor:
        """Return sums of nothing: the losses of all heads, what was selected, what was valid, `[3, H]`."""
        return torch.zeros(3, self.model.config.horizon, dtype=torch.float64, device=self.args.device)

    def _end_interval(self) -> dict[str, float]:
        """Return the heads' figures over all processes, and start anew."""
        ce, selected, valid = self.accelerator.reduce(self._sums, "sum").cpu()
        self._sums = self._no_sums()
        found = {"ce": ce / valid.clamp(min=1), "selected_ratio": selected / valid.clamp(min=1)}
        return {f"{name}/head_{h}": x for name, row in found.items() for h, x in enumerate(row.tolist())}
