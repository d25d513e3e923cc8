"""Models whose processes share rows, and whether a model can be such a one."""

import torch
from torch import Tensor

from wmtp_core import UserError
from wmtp_models.hf_loading import one_line
from wmtp_models.policy import MtpForCausalLM
from wmtp_models.reference import ReferenceModel
from wmtp_models.trunk.probe import equal_logits
from wmtp_models.trunk.row_slices import FoldedRows, Slices
from wmtp_models.trunk.sequence_parallel import cannot_split, wrap_attention

_SLICE = 8


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
    was_training = model.training
    model.eval()
    expected = _losses(model, count)
    wrap_attention(model, causal_lm, count)
    model.slices = FoldedRows(count)
    try:
        found = _losses(model, count)
    except UserError:
        raise
    except Exception as error:  # each family fails in a way of its own
        raise cannot_split(causal_lm, count, f"it does not run on slices ({one_line(error)})") from error
    model.train(was_training)
    if not equal_logits(expected, found):
        raise cannot_split(causal_lm, count, "its tokens see each other elsewhere than in its attention")
    model.slices = slices


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
    return output if isinstance(output, Tensor) else output.ce
