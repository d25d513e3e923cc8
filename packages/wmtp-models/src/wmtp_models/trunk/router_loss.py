"""The auxiliary loss of a mixture of experts' routers (Fedus et al., arXiv 2101.03961, equations 4 to 6)."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from wmtp_models.trunk.parts import cannot_wrap


@dataclass(frozen=True)
class RouterLoss:
    """What a family's own training adds to its loss, over any of its routers.

    Attributes:
        function: transformers' own, of the router logits of all layers, the number of experts and that of those chosen.
        coefficient: the family's, from its configuration.
        experts: number of experts.
        chosen: number of experts for each token.
        router: the class of the routers.
        index: where in a router's output its logits are.
    """

    function: Callable[..., Tensor]
    coefficient: float
    experts: int
    chosen: int
    router: type[nn.Module]
    index: int

    @contextmanager
    def capture(self, modules: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
        """Note the logits `[tokens, experts]` of every router in some modules that runs in here."""
        logits: list[Tensor] = []

        def note(_module: nn.Module, _args: object, output: tuple[Tensor, ...]) -> None:
            logits.append(output[self.index])

        with ExitStack() as hooks:
            for part in modules:
                for router in part.modules():
                    if isinstance(router, self.router):
                        hooks.callback(router.register_forward_hook(note).remove)
            yield logits

    def __call__(self, logits: list[Tensor]) -> Tensor | None:
        """Return the loss, coefficient included, a float32 scalar; None where no router ran."""
        if not logits:
            return None
        loss: Tensor = self.function(tuple(logits), self.experts, self.chosen)
        return self.coefficient * loss.to(torch.float32)


def find_router_loss(causal_lm: PreTrainedModel) -> RouterLoss | None:
    """Find the auxiliary loss of a model's routers.

    Returns:
        None for a model without routers, or with a coefficient of 0.

    Raises:
        UserError: the family has such a loss, in a form that is not known here.
    """
    function = getattr(sys.modules[type(causal_lm).__module__], "load_balancing_loss_func", None)
    config = causal_lm.config
    coefficient = getattr(causal_lm, "router_aux_loss_coef", getattr(config, "router_aux_loss_coef", 0.0))
    if function is None or not coefficient:
        return None
    recorder: Any = (getattr(causal_lm, "_can_record_outputs", None) or {}).get("router_logits")
    experts, chosen = (getattr(causal_lm, name, None) for name in ("num_experts", "num_experts_per_tok"))
    if not isinstance(getattr(recorder, "target_class", None), type) or not (experts and chosen):
        raise cannot_wrap(causal_lm, "it has an auxiliary loss of routers that cannot be added here")
    return RouterLoss(function, coefficient, experts, chosen, recorder.target_class, recorder.index)
