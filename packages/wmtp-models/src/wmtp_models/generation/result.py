"""What decoding gives, and what it cost."""

from dataclasses import dataclass

from wmtp_models.generation.rows import GeneratedSequence


@dataclass
class Generation:
    """What `generate` gives.

    Attributes:
        sequences: each prompt and what follows it, up to and including an EOS.
        drafted: how many drafts of head 1 … H−1 were verified within their row's limit.
        accepted: how many of those the text took; a head's draft counts only where all before it did.
        new_tokens: how many tokens follow the prompts, in all.
        forwards: how often the trunk ran over the batch, the forward of the prompts included.
        row_forwards: the same, counted once for every row that was still on its way.
        tie_forwards: forwards of the plain model over one row, which settled near_tie tokens.
    """

    sequences: list[list[int]]
    drafted: list[int]
    accepted: list[int]
    new_tokens: int = 0
    forwards: int = 0
    row_forwards: int = 0
    tie_forwards: int = 0

    @property
    def tokens_per_forward(self) -> float:
        """Return new tokens per forward of one row, `tie_forwards` counted: 1 is plain decoding, H the most."""
        return self.new_tokens / (self.row_forwards + self.tie_forwards)

    @property
    def acceptance(self) -> list[float]:
        """Return the share of its drafts that each of head 1 … H−1 saw accepted, in [0, 1]."""
        return [accepted / max(drafted, 1) for accepted, drafted in zip(self.accepted, self.drafted, strict=True)]

    def count_forward(self, rows: int) -> None:
        """Count one more forward over N rows."""
        self.forwards += 1
        self.row_forwards += rows

    def count_tokens(self, row: GeneratedSequence, drafts: int, accepted: int, new: int) -> None:
        """Count a row that took `new` tokens, among them the first `accepted` of its drafts as far as they reach."""
        self.new_tokens += new
        for place in range(min(drafts, row.remaining + new)):
            self.drafted[place] += 1
            self.accepted[place] += place < min(accepted, new)
