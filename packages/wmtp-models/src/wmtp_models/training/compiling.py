"""`torch.compile` of a policy's layers, each whole and in place."""

import functools
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from wmtp_core import UserError
from wmtp_models.hf_loading import one_line
from wmtp_models.policy import MtpForCausalLM

_OFF = "set model.compile to false"


def compile_layers(policy: MtpForCausalLM) -> None:
    """Compile each decoder layer of the trunk and each head, in place: names, parameters and hooks stay.

    A layer is compiled at its first call in training, without a graph break, for the shapes of that call; layers of
    one kind share what was compiled. In evaluation, where shapes change, all runs as it did.

    It is the last thing to be done to a policy: after adapters, checkpointing and freezing.

    Raises:
        UserError: the compiler lacks something here, or the trunk has routers whose loss is noted by hooks inside its
            layers. Later, from a forward: a layer that cannot be compiled whole.
    """
    _require_compiler()
    if policy.router_loss is not None:
        raise UserError(
            f"model.compile: the routers' loss of {type(policy.causal_lm).__name__} is noted by hooks inside its "
            f"layers, which a compiled layer does not run: {_OFF}"
        )
    for layer in policy.trunk.layers:
        _compile(layer)
    for kind in policy.heads.children():
        for head in kind.children():
            _compile(head)


def _compile(layer: nn.Module) -> None:
    """Compile a layer's forward, and not its call: hooks on the layer (`capture_call`, an engine's) stay outside."""
    eager: Callable[..., Any] = layer.forward
    compiled = torch.compile(eager, fullgraph=True, dynamic=False)

    @functools.wraps(eager)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not layer.training:
            return eager(*args, **kwargs)
        try:
            return compiled(*args, **kwargs)
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            name = type(layer).__name__
            raise UserError(f"model.compile: {name} cannot be compiled whole ({one_line(error)}): {_OFF}") from error

    layer.forward = forward


def _require_compiler() -> None:
    """Refuse a machine on which inductor has nothing to compile with.

    Raises:
        UserError: it has no Triton and C compiler for an accelerator, or no C++ compiler for a CPU.
    """
    if torch.cuda.is_available():
        from torch.utils._triton import has_triton

        if not has_triton():
            raise UserError(f"model.compile needs Triton on this device: pip install triton, or {_OFF}")
        if not any(map(shutil.which, ("cc", "gcc", "clang"))):
            raise UserError(
                f"model.compile: Triton needs a C compiler, and there is no gcc or clang: install one, or {_OFF}"
            )
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise UserError(
            f"model.compile needs a C++ compiler on a CPU, and there is no g++: install one, or {_OFF}"
        ) from error
