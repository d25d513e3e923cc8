"""Which of transformers' attention implementations a model runs with: the best that device, dtype and family allow."""

import inspect
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from wmtp_core import UserError
from wmtp_models.hf_loading import one_line
from wmtp_models.trunk.attention_calls import AttentionCall, record_attention_calls, set_attention
from wmtp_models.trunk.packed_masks import FLEX

_SMALLEST_FLEX_HEAD = 16  # of flex_attention's kernels
_LARGEST_FLASH_HEAD = 256


@dataclass(frozen=True)
class AttentionChoice:
    """An attention implementation, and why it is that one.

    Attributes:
        implementation: transformers' name.
        reason: a clause for the log.
    """

    implementation: str
    reason: str

    def __str__(self) -> str:
        """Return the line of the log."""
        return f"attention: {self.implementation} ({self.reason})"


def choose_attention(
    causal_lm: PreTrainedModel, isolates_documents: bool, wanted: str, device: torch.device, dtype: torch.dtype
) -> AttentionChoice:
    """Choose the attention of a causal LM.

    Args:
        causal_lm: the model, wherever it is.
        isolates_documents: whether it keeps packed documents apart where position ids restart.
        wanted: `auto`, `sdpa`, `flex` or `flash`.
        device: where it is going to run.
        dtype: what its attention is going to compute in.

    Raises:
        UserError: `flex` or `flash` cannot be had; the message says why.
    """
    default = _default(causal_lm)
    if wanted == "sdpa":
        return AttentionChoice(default, "as set" if default == "sdpa" else "the family has no sdpa")
    if wanted == "auto" and device.type != "cuda":
        return AttentionChoice(default, f"what a {device.type} has")
    flash, why_not_flash = _installed_flash(device, dtype)
    fit = fit_of_family(causal_lm, isolates_documents, inspect.signature(flash.function).parameters if flash else ())
    widest, narrowest = max(fit.widths, default=0), min(fit.widths, default=0)
    why_not_flash = why_not_flash or fit.why_not_flash
    if why_not_flash is None and widest > _LARGEST_FLASH_HEAD:
        why_not_flash = f"its heads have {widest} dimensions, and FlashAttention has at most {_LARGEST_FLASH_HEAD}"
    why_not_flex = None if device.type == "cuda" else f"flex_attention has no backward on a {device.type}"
    why_not_flex = why_not_flex or fit.why_not_flex
    if why_not_flex is None and narrowest < _SMALLEST_FLEX_HEAD:
        why_not_flex = f"its heads have {narrowest} dimensions, and flex_attention needs {_SMALLEST_FLEX_HEAD}"
    if flash and wanted in ("auto", "flash") and why_not_flash is None:
        return AttentionChoice(flash.name, "as set" if wanted == "flash" else "rows end to end, without a mask")
    if wanted in ("auto", "flex") and why_not_flex is None:
        return AttentionChoice(FLEX, "as set" if wanted == "flex" else f"by blocks; no flash: {why_not_flash}")
    if wanted == "auto":
        return AttentionChoice(default, f"masks of S² a row; no flash: {why_not_flash}; no flex: {why_not_flex}")
    why = why_not_flash if wanted == "flash" else why_not_flex
    other = "auto, flex or sdpa" if wanted == "flash" and why_not_flex is None else "auto or sdpa"
    raise UserError(
        f"model.attention is {wanted}, which {type(causal_lm).__name__} cannot have here: {why}; set {other}"
    )


def _default(causal_lm: PreTrainedModel) -> str:
    return "sdpa" if causal_lm._supports_sdpa else "eager"


@dataclass(frozen=True)
class FamilyFit:
    """Which attention would compute what a family's own code computes, on a device that has all.

    Attributes:
        why_not_flex: why flex_attention would not; None: it would.
        why_not_flash: likewise.
        widths: dimensions of each layer's heads, where they could be told.
    """

    why_not_flex: str | None
    why_not_flash: str | None
    widths: tuple[int, ...] = ()


def fit_of_family(causal_lm: PreTrainedModel, isolates_documents: bool, flash_parameters: Collection[str]) -> FamilyFit:
    """Look at what reaches a model's attention function.

    Args:
        causal_lm: the model; its weights are not read.
        isolates_documents: see `choose_attention`.
        flash_parameters: what the FlashAttention in question knows.
    """
    if not isolates_documents:
        return _fits_neither("it lets packed documents see each other")
    try:
        calls = record_attention_calls(causal_lm)
    except Exception as error:  # each family fails in a way of its own where it cannot be traced
        return _fits_neither(f"its attention cannot be looked into ({one_line(error)})")
    unfit = _unfit_for_both(causal_lm, calls)
    return FamilyFit(
        unfit or _unfit_for_flex(causal_lm, calls),
        unfit or _unfit_for_flash(causal_lm, calls, flash_parameters),
        tuple(call.width for call in calls),
    )


def _fits_neither(reason: str) -> FamilyFit:
    return FamilyFit(reason, reason)


def _unfit_for_both(causal_lm: PreTrainedModel, calls: list[AttentionCall]) -> str | None:
    if len(calls) != causal_lm.config.get_text_config().num_hidden_layers:
        return "not every layer calls transformers' attention interface, once"
    if any(call.own_mask for call in calls):
        return "it makes masks of its own"
    for name, what in (("s_aux", "attention sinks"), ("position_bias", "a bias by position")):
        if any(call.given.get(name) is not None for call in calls):
            return f"it has {what}"
    return None


def _unfit_for_flex(causal_lm: PreTrainedModel, calls: list[AttentionCall]) -> str | None:
    if not causal_lm._supports_flex_attn:
        return "transformers has no flex_attention for the family"
    if _drops_out(calls):
        return "it has attention dropout, which flex_attention has not"
    return None


def _unfit_for_flash(causal_lm: PreTrainedModel, calls: list[AttentionCall], parameters: Collection[str]) -> str | None:
    if not causal_lm._supports_flash_attn:
        return "transformers has no FlashAttention for the family"
    if any(call.given.get(name) is None for call in calls for name in ("cu_seq_lens_q", "max_length_k")):
        return "it does not hand on where documents begin"
    if any(call.given.get("sliding_window") != call.masked_to for call in calls):
        return "its windows are in its masks alone"
    if any(call.given.get("softcap") is not None for call in calls) and "softcap" not in parameters:
        return "it soft-caps its attention, which this FlashAttention does not"
    if _drops_out(calls) and "dropout_p" not in parameters:
        return "it has attention dropout, which this FlashAttention has not"
    return None


def _drops_out(calls: list[AttentionCall]) -> bool:
    return any(call.given.get("dropout") for call in calls)


class _Flash(NamedTuple):
    """A FlashAttention: transformers' name of it, and its function for packed rows."""

    name: str
    function: Any


def _installed_flash(device: torch.device, dtype: torch.dtype) -> tuple[_Flash | None, str | None]:
    """Return the newest FlashAttention that is installed, or why there is none for this device and dtype."""
    if device.type != "cuda":
        return None, f"FlashAttention does not run on a {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return None, f"FlashAttention computes in bfloat16 or float16, and this is {str(dtype).removeprefix('torch.')}"
    major, _ = torch.cuda.get_device_capability(device)
    if major == 9 and is_flash_attn_3_available():
        return _Flash("flash_attention_3", import_module("flash_attn_interface").flash_attn_varlen_func), None
    if major >= 8 and is_flash_attn_2_available():
        return _Flash("flash_attention_2", import_module("flash_attn").flash_attn_varlen_func), None
    return None, "neither flash-attn nor flash-attn-3 is installed for this device"


@contextmanager
def default_attention(model: Any) -> Iterator[None]:
    """Let a policy run in here with transformers' default attention, where its rows are not packed: to decode."""
    causal_lm = model.causal_lm
    before = causal_lm.config._attn_implementation
    packed = before == FLEX or "flash" in before
    if packed:
        set_attention(model, _default(causal_lm))
    try:
        yield
    finally:
        if packed:
            set_attention(model, before)
