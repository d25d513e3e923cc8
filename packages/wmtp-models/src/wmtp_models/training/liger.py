"""Liger's Triton kernels for norm, rotary embedding and MLP (Hsu et al., arXiv 2410.10989)."""

import importlib.util
import inspect
import sys
from typing import Any

import torch
from torch import nn

from wmtp_core import UserError
from wmtp_models.heads.sequential import SequentialModule
from wmtp_models.policy import MtpForCausalLM
from wmtp_models.trunk.parts import FINAL_NORMS, LAYER_LISTS

_OFF = "set model.liger to false"
_SWISH = ("silu", "swish")


def require_liger(policy: MtpForCausalLM) -> None:
    """Refuse Liger's kernels where they cannot run, or would compute something else.

    Raises:
        UserError: the package is not installed, there is no accelerator, or it has no kernels for the trunk's family or
            activation.
    """
    if importlib.util.find_spec("liger_kernel") is None:
        raise UserError(f"model.liger needs the package liger-kernel: pip install liger-kernel, or {_OFF}")
    if not torch.cuda.is_available():
        raise UserError(f"model.liger: its Triton kernels need an accelerator, and torch sees none here: {_OFF}")
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as families

    family, activation = policy.config.trunk.model_type, getattr(policy.config.text, "hidden_act", None)
    if family not in families:
        raise UserError(f"model.liger: liger-kernel has no kernels for {family}: {_OFF}")
    if "swiglu" in inspect.signature(families[family]).parameters and activation not in _SWISH:
        # In a model that is there already it replaces the MLP without a look at that.
        raise UserError(f"model.liger: its MLP has the activation silu, and the model's is {activation}: {_OFF}")


def apply_liger(policy: MtpForCausalLM) -> None:
    """Let Liger replace the forwards of norms and MLPs in trunk and heads, and the family's rotary embedding.

    Its cross-entropy is left out: the loss is our own. Weights and their names stay. The rotary embedding is replaced
    for every model of the family in this process, which from then on runs on the accelerator alone.

    Raises:
        UserError: see `require_liger`.
    """
    require_liger(policy)
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    causal_lm = policy.causal_lm
    decoder: Any = causal_lm.get_decoder()
    layers_name, norm_name = (next(n for n in names if hasattr(decoder, n)) for names in (LAYER_LISTS, FINAL_NORMS))
    layers, norm = getattr(decoder, layers_name), getattr(decoder, norm_name)
    blocks = [module for module in policy.heads.modules() if type(module) is type(policy.trunk.last_layer)]
    modules = [module for module in policy.heads.modules() if isinstance(module, SequentialModule)]
    norms = [part for module in modules for part in (module.enorm, module.hnorm, module.post_norm)]
    family = vars(sys.modules[type(causal_lm).__module__])
    classes = {name: value for name, value in family.items() if isinstance(value, type)}
    try:
        # It goes through the layers and the final norm of a decoder: all of ours have to stand there for a moment.
        for some, final in [([*layers, *blocks], norm), *(([], part) for part in norms if type(part) is type(norm))]:
            setattr(decoder, layers_name, nn.ModuleList(some))
            setattr(decoder, norm_name, final)
            _apply_liger_kernel_to_instance(model=causal_lm, cross_entropy=False, fused_linear_cross_entropy=False)
    finally:
        setattr(decoder, layers_name, layers)
        setattr(decoder, norm_name, norm)
        family.update(classes)  # it replaces these too, for models that are built later
