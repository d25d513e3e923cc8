"""The auxiliary loss of a mixture of experts' routers (Fedus et al., arXiv 2101.03961, equations 4 to 6)."""

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wmtp_models.trunk.parts import cannot_wrap

_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")
_ARGUMENTS = ("gate_logits", "num_experts", "top_k", "attention_mask")


@dataclass(frozen=True)
class RouterLoss:
    """What a family's own training adds to its loss, over any of its routers.

    Attributes:
        function: transformers' own, of the router logits of all layers, `experts`, `chosen` and an attention mask.
        coefficient: the family's, from its configuration.
        experts: number of experts.
        chosen: number of experts for each token.
        routers: by class, where in a router's output its logits are.
    """

    function: Callable[..., Tensor]
    coefficient: float
    experts: int
    chosen: int
    routers: dict[type[nn.Module], int]

    @contextmanager
    def capture(self, modules: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
        """Note the logits `[tokens, experts]` of every router in some modules that runs in here."""
        logits: list[Tensor] = []
        with ExitStack() as hooks:
            for part in modules:
                for module in part.modules():
                    for router, index in self.routers.items():
                        if isinstance(module, router):
                            hook = module.register_forward_hook(
                                lambda _module, _args, output, index=index: logits.append(output[index])
                            )
                            hooks.callback(hook.remove)
            yield logits

    def __call__(self, logits: list[Tensor], attention_mask: Tensor | None = None) -> Tensor:
        """Compute the loss, coefficient included.

        Args:
            logits: `[B * S, experts]` of each router that ran.
            attention_mask: `[B, S]`, 0 at padding, which does not count.

        Returns:
            A float32 scalar.
        """
        loss: Tensor = self.function(tuple(logits), self.experts, self.chosen, attention_mask)
        return self.coefficient * loss.to(torch.float32)


def find_router_loss(causal_lm: PreTrainedModel) -> RouterLoss | None:
    """Find the auxiliary loss of a model's routers.

    Returns:
        None for a model without routers, with a coefficient of 0, or of a family that trains without such a loss.

    Raises:
        UserError: the family has such a loss, in a form that is not known here.
    """
    function = getattr(sys.modules[type(causal_lm).__module__], "load_balancing_loss_func", None)
    places = (causal_lm, causal_lm.config)
    coefficients = [getattr(place, name) for name in _COEFFICIENTS for place in places if hasattr(place, name)]
    if function is None or (coefficients and not coefficients[0]):
        return None
    recorded: Any = (getattr(causal_lm, "_can_record_outputs", None) or {}).get("router_logits")
    recorders = recorded if isinstance(recorded, list) else [recorded]
    unknown = cannot_wrap(causal_lm, "it has an auxiliary loss of routers that cannot be added here")
    if not all(isinstance(getattr(recorder, "target_class", None), type) for recorder in recorders):
        raise unknown
    routers = {recorder.target_class: recorder.index for recorder in recorders}
    if not any(isinstance(module, tuple(routers)) for module in causal_lm.modules()):
        return None
    experts, chosen = (getattr(causal_lm, name, None) for name in ("num_experts", "num_experts_per_tok"))
    if not (coefficients and experts and chosen) or tuple(inspect.signature(function).parameters) != _ARGUMENTS:
        raise unknown
    return RouterLoss(function, coefficients[0], experts, chosen, routers)
