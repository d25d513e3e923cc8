"""What decoding gives, and what it cost."""

from dataclasses import dataclass

from wmtp_models.generation.rows import Row


@dataclass
class Generation:
    """What `generate` gives.

    Attributes:
        sequences: each prompt and what follows it, up to and including an EOS.
        drafted: how many drafts of head 1 … H−1 were verified within their row's limit.
        kept: how many of those the text took; a head's draft counts only where all before it did.
        new_tokens: how many tokens follow the prompts, in all.
        forwards: how often the trunk ran over the batch, the forward of the prompts included.
        row_forwards: the same, counted once for every row that was still on its way.
        replays: forwards of the plain model over one row, which settled near_tie tokens.
    """

    sequences: list[list[int]]
    drafted: list[int]
    kept: list[int]
    new_tokens: int = 0
    forwards: int = 0
    row_forwards: int = 0
    replays: int = 0

    @property
    def tokens_per_forward(self) -> float:
        """New tokens per forward of one row, replays counted: 1 is plain decoding, H the most there can be."""
        return self.new_tokens / (self.row_forwards + self.replays)

    @property
    def acceptance(self) -> list[float]:
        """The part of its drafts that head 1 … H−1 saw kept, in [0, 1]."""
        return [kept / max(drafted, 1) for kept, drafted in zip(self.kept, self.drafted, strict=True)]

    def count_forward(self, rows: int) -> None:
        """One more forward over so many rows."""
        self.forwards += 1
        self.row_forwards += rows

    def count_tokens(self, row: Row, drafts: int, kept: int, new: int) -> None:
        """A row took `new` tokens, among them the first `kept` of its drafts as far as they reach."""
        self.new_tokens += new
        for place in range(min(drafts, row.room + new)):
            self.drafted[place] += 1
            self.kept[place] += place < min(kept, new)
