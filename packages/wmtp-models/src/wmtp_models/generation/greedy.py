"""Greedy verification that rounding cannot turn."""

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from wmtp_models.generation.rows import GeneratedSequence

# The margin between the two best logits, in units of eps · the largest logit, below which a forward of another shape
# might order them otherwise. Over six families of 3 to 32 layers, verifying four tokens at once moved that margin by up
# to 26 such units in float32 and by up to 5 in half precision, where each layer rounds its output anyway.
_NEAR_TIE, _NEAR_TIE_IN_HALF = 128, 16


class GreedyVerifier:
    """The most probable token, as transformers' `generate(do_sample=False)` finds it for each prompt alone.

    A forward over several tokens rounds otherwise than one over a single token, and where the two best logits are as
    good as equal, that decides. Such a token is settled by the plain model itself, if `exact`.
    """

    def __init__(self, causal_lm: PreTrainedModel, exact: bool) -> None:
        self.tie_forwards = 0
        self.drafts = torch.empty(0, 0, dtype=torch.long)
        self._causal_lm = causal_lm
        self._exact = exact
        self._plain: dict[int, ReferenceDecoder] = {}

    def start(self, rows: int) -> None:
        """Begin a round of so many rows without any draft."""
        self.drafts = torch.empty(rows, 0, dtype=torch.long, device=self._causal_lm.device)

    def propose(self, logits: Tensor) -> Tensor:
        """Draft the most probable tokens by logits `[B, n, V]` of the next n heads, int64 `[B, n]`."""
        tokens = logits.argmax(dim=-1)
        self.drafts = torch.cat([self.drafts, tokens], dim=1)
        return tokens

    def verify(self, logits: Tensor, rows: list[GeneratedSequence]) -> tuple[Tensor, Tensor]:
        """Accept the drafts that head 0 would have chosen.

        Args:
            logits: float32 `[B, d + 1, V]` of head 0 before each draft and after the last.
            rows: the B rows.

        Returns:
            How many drafts each row accepts, int64 `[B]`, and the token after them, int64 `[B]`.
        """
        going = {row.number for row in rows}
        self._plain = {number: plain for number, plain in self._plain.items() if number in going}
        chosen = logits.argmax(dim=-1)  # [B, d + 1]
        if self._exact:
            for b, place in near_tie(logits, self._causal_lm.dtype).nonzero().tolist():
                row, before = rows[b], self.drafts[b, :place]
                if place < row.remaining and torch.equal(chosen[b, :place], before):
                    chosen[b, place] = self._resolve_tie(row, before.tolist())
        accepted = (chosen[:, :-1] == self.drafts).long().cumprod(dim=-1).sum(dim=-1)  # [B]
        return accepted, chosen.gather(-1, accepted.unsqueeze(-1)).squeeze(-1)

    def _resolve_tie(self, row: GeneratedSequence, drafts: list[int]) -> int:
        if row.number not in self._plain:
            self._plain[row.number] = ReferenceDecoder(self._causal_lm)
        plain = self._plain[row.number]
        before = plain.forwards
        token = plain.next_token(row.tokens + drafts, row.prompt_length)
        self.tie_forwards += plain.forwards - before
        return token


def near_tie(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """Return where the argmax over `[..., V]` may hang on rounding in a model of this dtype; bool `[...]`."""
    units = _NEAR_TIE_IN_HALF if dtype.itemsize == 2 else _NEAR_TIE
    best = logits.topk(2, dim=-1).values  # [..., 2]
    bound = units * torch.finfo(dtype).eps * logits.abs().amax(dim=-1)
    return ~(best[..., 0] - best[..., 1] > bound)  # NaN is one too


class ReferenceDecoder:
    """The plain model on one prompt alone: the prompt in one forward, then token by token, in transformers' own cache.

    These are the forwards of `generate(prompt, do_sample=False)`, of the same shapes and so equal to the bit.
    """

    def __init__(self, causal_lm: PreTrainedModel) -> None:
        self.forwards = 0
        self._causal_lm = causal_lm
        self._cache = DynamicCache(config=causal_lm.config)
        self._fed = 0

    def next_token(self, tokens: list[int], prompt_length: int) -> int:
        """Return the token after these, which begin with the prompt and go on from what was asked before."""
        assert len(tokens) > self._fed
        while self._fed < len(tokens):
            end = max(self._fed + 1, prompt_length)
            input_ids = torch.tensor([tokens[self._fed : end]], device=self._causal_lm.device)
            output = self._causal_lm(input_ids=input_ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            self._fed = end
            self.forwards += 1
        return int(output.logits[0, -1].float().argmax())
