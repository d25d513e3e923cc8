"""Whether a causal LM can have heads: a look at the losses of a few tokens."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wmtp_models.trunk.capture import layer_output
from wmtp_models.trunk.parts import cannot_wrap, trunk_parts
from wmtp_models.trunk.router_loss import find_router_loss

_DOCUMENT = 150


@torch.no_grad()
def require_wrappable(causal_lm: PreTrainedModel, packing: bool = True) -> bool:
    """Refuse a model whose losses would be wrong without a sign.

    Its logits must be unembedding(norm(last layer)), scaled or soft-capped as its configuration says (Cohere, Granite,
    Gemma 2), and not projected after the norm. No token may see a later one. Documents that are packed into a row must
    not see each other where position ids restart (see `packing_layout`): Falcon, BLOOM and recurrent layers do not look
    at these. And the auxiliary loss of routers must be known.

    Args:
        causal_lm: the model.
        packing: whether it is to be given rows of several documents.

    Returns:
        Whether it keeps such documents apart. One that does not is never given position ids.

    Raises:
        UserError: one of these is not so.
    """
    parts = trunk_parts(causal_lm)
    find_router_loss(causal_lm)
    seen: list[Tensor] = []
    hook = parts.last_layer.register_forward_hook(lambda _module, _args, output: seen.append(layer_output(output)))
    was_training = causal_lm.training
    causal_lm.eval()
    rows = torch.tensor([[0, 1, 0, 1], [0, 1, 1, 0]], device=parts.weight.device)  # [2, 4]
    try:
        logits = causal_lm(input_ids=rows[:1, :2], use_cache=False).logits
        whole = causal_lm(input_ids=rows, use_cache=False).logits  # [2, 4, V], of the same beginning
        isolates = _isolates(causal_lm)
    finally:
        hook.remove()
        causal_lm.train(was_training)
    hidden = parts.norm(seen[0])
    fits = hidden.shape[-1] == parts.unembedding.in_features
    same = torch.equal if parts.transform.is_identity else equal_logits
    if not fits or not same(logits, parts.logits(hidden).to(logits.dtype)):
        raise cannot_wrap(causal_lm, "its logits are not the product of final norm and output embedding")
    if not equal_logits(whole[0, :2], whole[1, :2]):
        raise cannot_wrap(causal_lm, "its tokens see later ones")
    if packing and not isolates:
        fix = "set data.packing to false, which gives each document a row of its own"
        raise cannot_wrap(causal_lm, "documents packed into a row see each other in it", fix)
    return isolates


def _isolates(causal_lm: PreTrainedModel) -> bool:
    """Return whether the second of two documents in a row is told as if it stood alone.

    They are longer than the blocks of tokens that some families attend to, so that one block holds tokens of both.
    """
    config = causal_lm.config.get_text_config()
    lengths = [getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len")]
    length = min([_DOCUMENT, *(longest // 2 for longest in lengths if longest)])
    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(min(config.vocab_size, 1000), (2, 2 * length), generator=draw).to(causal_lm.device)
    rows[1, length:] = rows[0, length:]
    positions = torch.arange(length, device=causal_lm.device).repeat(2).expand(2, -1)
    packed = causal_lm(input_ids=rows, position_ids=positions, use_cache=False).logits
    return equal_logits(packed[0, length:], packed[1, length:])


def equal_logits(expected: Tensor, found: Tensor) -> bool:
    """Return whether logits are the same, but for the rounding of rows that lie elsewhere in memory."""
    bound = (32 if found.dtype.itemsize == 4 else 4) * torch.finfo(found.dtype).eps * expected.abs().max()
    return bool((expected - found).abs().max() <= bound)
