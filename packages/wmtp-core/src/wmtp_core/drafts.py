"""What heads predict: their most probable tokens, and which of these a decoder would accept."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from wmtp_core.losses.logit_transform import IDENTITY, LogitTransform
from wmtp_core.losses.logits_chunk import rows_per_chunk
from wmtp_core.targets import shift_to_heads


@torch.no_grad()
def linear_argmax(hidden: Tensor, weight: Tensor, transform: LogitTransform = IDENTITY) -> Tensor:
    """Return the most probable token of every row, without ever holding more than a chunk of `hidden @ weight.T`.

    Args:
        hidden: `[N, D]`, normed hidden states.
        weight: `[V, D]`, the unembedding.
        transform: from the product to the logits, which can make two of them equal.

    Returns:
        int64 `[N]`, in 0 … V−1.
    """
    chunks = hidden.split(rows_per_chunk(weight))
    return torch.cat([transform(rows @ weight.T).argmax(dim=-1) for rows in chunks])


@torch.no_grad()
def linear_overlap(hidden: Tensor, verifying: Tensor, weight: Tensor, transform: LogitTransform = IDENTITY) -> Tensor:
    """Return how much two distributions have in common, Σ_v min(p(v), q(v)), for every row of two hidden states.

    That is how often a draft of one is accepted where the other verifies it, in sampling at temperature 1 (Leviathan et
    al., arXiv 2211.17192, theorem 3.5).

    Args:
        hidden: `[N, D]`, normed hidden states that draft.
        verifying: `[N, D]`, those that verify.
        weight: `[V, D]`, the unembedding of both.
        transform: from products to logits.

    Returns:
        float32 `[N]`, in [0, 1].
    """
    rows = max(1, rows_per_chunk(weight) // 4)  # of both, and as probabilities
    chunks = zip(hidden.split(rows), verifying.split(rows), strict=True)
    return torch.cat(
        [
            torch.minimum(*(transform((states @ weight.T).float()).softmax(dim=-1) for states in both)).sum(dim=-1)
            for both in chunks
        ]
    )


def accepted_drafts(predicted: Tensor) -> Tensor:
    """Return which drafts greedy self-speculative decoding would accept, if it began at every position of a given text.

    After the tokens ≤ t of the text, head h ≥ 1 drafts the token at t+h+1. Head 0 verifies it from the tokens ≤ t+h of
    the text (teacher forcing), and it is accepted if that is head 0's choice too and all drafts before it were:
    accepted[t, h] = Π_{j=1..h} [predicted[t, j] = predicted[t+j, 0]] (arXiv 2404.19737, section 3.2). A forward then
    gives 1 + Σ_{h≥1} accepted[t, h] tokens. On a text that the model itself decoded greedily, this is what the decoder
    accepted at the positions where its forwards began; other texts take other turns than the model would.

    Args:
        predicted: int64 `[B, S, H]`, every head's most probable token.

    Returns:
        bool `[B, S, H]`; True for head 0, whose token needs no verification, and False where t+h lies beyond the row.
        Where it lies in another document the comparison has no meaning: count valid targets alone.
    """
    # [t, h] of what head 0 predicts at t+h: the shift is one less than that of targets.
    verifying = shift_to_heads(pad(predicted[..., 0], (1, 0)), predicted.shape[-1], fill=-1)[:, :-1]
    return (predicted == verifying).long().cumprod(dim=-1).bool()
