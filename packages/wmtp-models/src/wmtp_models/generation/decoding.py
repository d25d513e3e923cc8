"""Self-speculative decoding: the heads draft, the trunk verifies (Gloeckle et al., arXiv 2404.19737, section 3.2)."""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from wmtp_core import UserError
from wmtp_models.generation.cache import RaggedCache
from wmtp_models.generation.greedy import GreedyVerifier
from wmtp_models.generation.result import Generation
from wmtp_models.generation.rows import GeneratedSequence, context_length, start_sequences
from wmtp_models.generation.sampling import Sampling, SpeculativeSampler
from wmtp_models.policy import MtpForCausalLM
from wmtp_models.trunk.attention import default_attention


class Verifier(Protocol):
    """How tokens are chosen: greedily, or drawn."""

    drafts: Tensor  # int64 [B, d], proposed since the last start
    tie_forwards: int

    def start(self, rows: int) -> None:
        """Begin a round of so many rows without any draft."""

    def propose(self, logits: Tensor) -> Tensor:
        """Draft tokens from the logits `[B, n, V]` of the next n heads, int64 `[B, n]`."""

    def verify(self, logits: Tensor, rows: list[GeneratedSequence]) -> tuple[Tensor, Tensor]:
        """Return how many drafts each row accepts by head 0's logits, `[B, d + 1, V]`, and the token after them."""


@torch.no_grad()
def generate(
    policy: MtpForCausalLM,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    eos_token_ids: Collection[int] = (),
    sampling: Sampling | None = None,
    speculate: bool = True,
    exact: bool = True,
    on_tokens: Callable[[int, list[int], bool], None] | None = None,
) -> Generation:
    """Go on from prompts, up to H tokens a forward.

    A round is one forward over each row's last token and the H−1 drafts after it. Head 0 verifies the drafts, each row
    keeps its own longest right prefix, and the later heads draft anew from where that ends, all at once or one after
    the other (`Heads.draft`). The caches of trunk and heads forget what was not accepted.

    **Greedy** (no `sampling`): the tokens are those of transformers' `unwrap().generate(do_sample=False)` for each
    prompt alone. In exact arithmetic that is so by construction. Forwards of different shapes round differently, so
    every token whose two best logits are closer than rounding was ever seen to reach is settled by the plain model, on
    a cache of its own that catches up, token by token, when it is needed. In float32 that is less than a token in a
    thousand; in bfloat16 and float16 near-ties are frequent and eat up the gain, which `exact=False` saves by
    trusting the verification, at the price of another token here and there.

    **Sampling**: the tokens are distributed as the plain model's, see `verify_drafts`.

    Args:
        policy: in evaluation mode.
        prompts: token ids of each row, of any lengths.
        max_new_tokens: for each row, which also ends at the model's context.
        eos_token_ids: tokens that end a row.
        sampling: how to draw tokens; None is greedy.
        speculate: False decodes plainly with the same cache, one token a forward, without the later heads.
        exact: whether greedy near-ties are settled.
        on_tokens: called with a row's number, its new tokens as soon as they stand, and whether it ends there.

    Raises:
        UserError: a prompt that is empty, fills the context or holds unknown tokens; no prompt, no token wanted; a
            policy in training mode, or one whose positions depend on the length of the text (longrope).
    """
    _require_steady(policy)
    live = start_sequences(policy, prompts, max_new_tokens, eos_token_ids)
    later_heads = policy.config.horizon - 1
    result = Generation([row.tokens for row in live], [0] * later_heads, [0] * later_heads)
    verifier: Verifier = (
        GreedyVerifier(policy.causal_lm, exact) if sampling is None else SpeculativeSampler(sampling, policy.device)
    )
    to_logits = policy.trunk.logits
    cache = RaggedCache(len(live), policy.device)
    fed, lengths = _pad_left(live, policy.device)
    verifier.start(len(live))
    with default_attention(policy):
        while live:
            attention_mask, position_ids = cache.extend(lengths, fed.shape[1])
            # Drafts may reach beyond the context; such ones are never accepted.
            position_ids = position_ids.clamp(max=context_length(policy) - 1)
            inputs = policy.forward_cached(fed, position_ids, attention_mask, cache.layers)
            result.count_forward(len(live))
            drafts = verifier.drafts.shape[1]
            logits = to_logits(inputs.final[:, -1 - drafts :]).float()  # [B, d + 1, V]
            accepted, following = verifier.verify(logits, live)  # [B], [B]
            proposed = zip(live, verifier.drafts.tolist(), accepted.tolist(), following.tolist(), strict=True)
            for row, drafted, n, token in proposed:
                new = row.add([*drafted[:n], token])
                result.count_tokens(row, drafts, n, len(new))
                if on_tokens is not None:
                    on_tokens(row.number, new, row.ended)
            going = torch.tensor([b for b, row in enumerate(live) if not row.ended], device=policy.device)  # [R]
            live = [row for row in live if not row.ended]
            if live:
                verifier.start(len(live))
                if speculate and len(policy.heads):
                    last = fed.shape[1] - 1 - drafts + accepted  # [B]
                    after = fed.roll(-1, dims=1).scatter(1, last.unsqueeze(1), following.unsqueeze(1))  # [B, Q]
                    policy.heads.draft(
                        inputs, after, going, last[going], lambda states: verifier.propose(to_logits(states).float())
                    )
                cache.keep(going, (drafts - accepted)[going])
                fed = torch.cat([following[going].unsqueeze(-1), verifier.drafts], dim=-1)  # [R, H]
                lengths = torch.full_like(going, fed.shape[1])
    result.tie_forwards = verifier.tie_forwards
    return result


def _require_steady(policy: MtpForCausalLM) -> None:
    if policy.training:
        raise UserError("the model is in training mode, where dropout changes its text: call its eval() first")
    if not policy.config.isolates_documents:
        raise UserError(
            f"drafting needs a trunk that goes by position ids, which {policy.config.trunk.model_type} does not: "
            "decode with unwrap().generate()"
        )
    if not _keeps_keys_and_values(policy):
        raise UserError(
            "drafting needs a trunk that keeps keys and values alone, once a layer, and "
            f"{policy.config.text.model_type} keeps others: decode with unwrap().generate()"
        )
    rope = getattr(policy.config.text, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        raise UserError(
            "the model's rotary embeddings (longrope) change with the length of the text, so that drafts would change "
            "it too: decode with unwrap().generate()"
        )


def _keeps_keys_and_values(policy: MtpForCausalLM) -> bool:
    """Return whether a cache is all that is taken back with a rejected draft, and each layer has its own slot there."""
    kinds = {type(layer) for layer in DynamicCache(config=policy.config.text).layers}
    slots = [getattr(module, "layer_idx", None) for module in policy.trunk.last_layer.modules()]
    indices = {slot for slot in slots if isinstance(slot, int)}
    return kinds <= {DynamicLayer, DynamicSlidingWindowLayer} and indices == {len(policy.trunk.layers) - 1}


def _pad_left(rows: list[GeneratedSequence], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the prompts as one batch, int64 `[B, longest]`, and their lengths `[B]`."""
    lengths = [row.prompt_length for row in rows]
    padded = [[0] * (max(lengths) - row.prompt_length) + row.tokens for row in rows]
    return torch.tensor(padded, device=device), torch.tensor(lengths, device=device)
