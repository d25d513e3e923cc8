"""Parameters, activations and operations of a small model against the formulas."""

from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from scaling import compute, transient
from scaling.check import Check
from scaling.small_model import HORIZON, K_PERCENT, LENGTH, LLAMA, ROWS, VOCABULARY, small_model, small_plan
from scaling.tensors import float_storages, new_bytes
from wmtp_core import GradientHint
from wmtp_core.losses.hints import StaticHint
from wmtp_models import MtpForCausalLM


def check_parameters() -> Iterator[Check]:
    """Of a policy with weights."""
    for tied in (False, True):
        policy, size = small_model(tied=tied)
        counted = sum(parameter.numel() for parameter in policy.parameters())
        yield Check(f"parameters, {'tied' if tied else 'untied'}", size.parameters, counted, 0)


def check_activations() -> Iterator[Check]:
    """What autograd keeps of a forward."""
    for dtype in (torch.bfloat16, torch.float32):
        kept = [_kept_bytes(small_model(layers)[0].to(dtype)) for layers in (3, 4)]
        plan, name = small_plan(small_model()[1]), str(dtype).removeprefix("torch.")
        layer = transient.layer_activations(plan, dtype.itemsize)
        yield Check(f"activations of a layer, {name}, B", layer, kept[1] - kept[0], 0)
        whole = transient.activations(plan, dtype.itemsize, checkpointing=False)
        yield Check(f"activations of trunk and heads, {name}, B", whole, kept[0], 0.05)
        policy = small_model()[0].to(dtype)
        policy.gradient_checkpointing_enable({"use_reentrant": False})
        before_backward = transient.activations(plan, dtype.itemsize, checkpointing=True) - layer
        yield Check(f"activations, checkpointed, {name}, B", before_backward, _kept_bytes(policy), 0.05)


def _kept_bytes(policy: MtpForCausalLM) -> int:
    """What a forward leaves behind for the backward, two documents a row, without the states that the loss is given."""
    position_ids = (torch.arange(LENGTH) % (LENGTH // 2)).expand(ROWS, -1)
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    saved: list[Tensor] = []  # what autograd holds is not seen from Python unless somebody else holds it, too

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    policy.train()
    before = float_storages()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = policy.head_logits(ids, position_ids)  # [B, S, H, V]
    states = ids.numel() * HORIZON * LLAMA["hidden_size"] * policy.dtype.itemsize
    return new_bytes(before) - logits.nbytes - states


def check_operations() -> Iterator[Check]:
    """As torch counts them."""
    policy, size = small_model()
    policy.to(torch.bfloat16)  # in float32 the loss sums by an operation that the counter does not know
    length = 16 * LENGTH  # the last positions lack targets, which costs less: let them be few
    ids = torch.randint(VOCABULARY, (1, length), generator=torch.Generator().manual_seed(0))
    with _attention_as_products(), FlopCounterMode(display=False) as counter:
        policy.head_logits(ids)
    whole = (compute.forward(size, length) + compute.loss_pass(size)) * length
    yield Check("forward, FLOP", whole, counter.get_total_flops(), 0)
    draw = torch.rand(1, length, HORIZON, generator=torch.Generator().manual_seed(1))
    draw[..., 0] = 0  # head 0 learns everything
    for name, k_percent in (("all learned", None), (f"selected, k = {K_PERCENT}", K_PERCENT)):
        weights = (draw < (k_percent or 1)).float()
        guess = GradientHint(StaticHint(weights), torch.ones(HORIZON))
        with _attention_as_products(), FlopCounterMode(display=False) as counter:
            output = policy(ids, guess=lambda _values, guess=guess: guess)
            (output.ce * weights).sum().backward()
        step = compute.training_step(size, length, k_percent, checkpointing=False) * length
        yield Check(f"forward and backward, {name}, FLOP", step, counter.get_total_flops(), 0.02)


def _attention_as_products() -> AbstractContextManager[None]:
    """Attention of which the counter sees every product."""
    return sdpa_kernel(SDPBackend.MATH)
