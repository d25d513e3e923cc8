"""Models whose processes share rows, and whether a model can be such a one."""

import torch
from torch import Tensor

from wmtp_core import UserError
from wmtp_models.hf_loading import one_line
from wmtp_models.policy import MtpForCausalLM
from wmtp_models.reference import ReferenceModel
from wmtp_models.trunk.attention_calls import set_attention
from wmtp_models.trunk.probe import equal_logits
from wmtp_models.trunk.row_slices import FoldedRows, Slices
from wmtp_models.trunk.sequence_parallel import SPLIT, cannot_split

_SLICE = 8
_LAYERS = {"full_attention", "sliding_attention"}


def share_rows(model: MtpForCausalLM | ReferenceModel, slices: Slices) -> None:
    """Let a model compute a slice of each row, and the other processes of a group the others, in place.

    From here on every process of the group has to call it with the same rows, whose length the group divides. Before
    that its losses are compared, on this process alone, with those of what all slices would compute.

    Raises:
        UserError: the slices have other losses than whole rows (tokens see each other elsewhere than in transformers'
            attention), or the attention's heads cannot be divided.
    """
    causal_lm, count = model.causal_lm, slices.count
    if count == 1:
        return
    if isinstance(model, MtpForCausalLM):
        isolates, router_loss = model.config.isolates_documents, model.router_loss
    else:
        isolates, router_loss = model.isolates_documents, None
    if router_loss is not None:
        raise cannot_split(causal_lm, count, "the loss of its routers looks at all tokens at once")
    if not isolates:
        raise cannot_split(causal_lm, count, "its documents see each other where position ids restart")
    config = causal_lm.config.get_text_config()
    attention = causal_lm.config._attn_implementation
    if attention not in SPLIT or not causal_lm._supports_sdpa:
        raise cannot_split(causal_lm, count, f"its attention is {attention}, and not transformers' sdpa, flex or flash")
    others = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYERS)
    if others or getattr(config, "attention_chunk_size", None):
        raise cannot_split(causal_lm, count, f"it has layers of {', '.join(others) or 'chunked_attention'}")
    _require_same_losses(model, count)
    set_attention(model, SPLIT[attention])
    model.slices = slices


def _require_same_losses(model: MtpForCausalLM | ReferenceModel, count: int) -> None:
    was_training = model.training
    model.eval()
    set_attention(model, "sdpa")  # which runs where the model is now
    expected = _losses(model, count)
    set_attention(model, SPLIT["sdpa"])
    model.slices = FoldedRows(count)
    try:
        found = _losses(model, count)
    except UserError:
        raise
    except Exception as error:  # each family fails in a way of its own
        raise cannot_split(model.causal_lm, count, f"it does not run on slices ({one_line(error)})") from error
    model.train(was_training)
    if not equal_logits(expected, found):
        raise cannot_split(model.causal_lm, count, "its tokens see each other elsewhere than in its attention")


@torch.no_grad()
def _losses(model: MtpForCausalLM | ReferenceModel, count: int) -> Tensor:
    """Return the losses of two documents in a row, of which a slice holds the end of one and the start of another."""
    weight = model.trunk.weight
    length = _SLICE * count
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(min(len(weight), 1000), (1, length), generator=draw).to(weight.device)
    border = length // 2 + _SLICE // 2
    positions = torch.cat([torch.arange(border), torch.arange(length - border)])[None].to(weight.device)
    output = model(ids, position_ids=positions)
    losses = output if isinstance(output, Tensor) else output.ce
    return losses.to(weight.dtype)  # in which both rounded what they are made of
