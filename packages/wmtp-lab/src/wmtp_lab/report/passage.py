"""A passage of held-out text, each token shaded by what the later heads (1 and up) make of it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from wmtp_core.errors import UserError

SHADES = 7  # 0 pale … 6 dark


class Token(NamedTuple):
    """A token of a passage: its `shade` is None where no later head predicted it, `kind` is "" where it is clean."""

    text: str
    kind: str
    shade: int | None
    starts_document: bool
    decisions: str


@dataclass(frozen=True)
class Passage:
    """A marked passage of one held-out set.

    `binary` weights mean "keep" or "drop"; others are shown by their mean. `scale` is what the palest and the darkest
    shade stand for: a number of heads, or a mean weight. `mean_clean` and `mean_noise` are the mean weight (the share
    kept, where `binary`) of the later heads' predictions of clean and of noisy tokens, None where there are none.
    """

    held_out: str
    tokens: list[Token]
    later_heads: int
    binary: bool
    scale: tuple[float, float]
    mean_clean: float | None
    mean_noise: float | None

    @property
    def kinds(self) -> set[str]:
        return {token.kind for token in self.tokens} - {""}

    @property
    def legend(self) -> list[tuple[str, int]]:
        """What shades stand for: every number of heads, or the ends of the range of weights."""
        if self.binary:
            return [(str(heads), _shade(heads, self.scale)) for heads in range(self.later_heads + 1)]
        low, high = self.scale
        return [(f"{low:.2f} or less", 0), (f"{high:.2f} or more", SHADES - 1)]


def read_passage(held_out: str, content: Any) -> Passage:
    """Shade a passage as `wmtp_train.metrics.annotated_sample.annotate_sample` describes it.

    Raises:
        UserError: the content is no such description.
    """
    try:
        texts, noise, documents, weights = (content[key] for key in ("tokens", "noise", "documents", "weights"))
        horizon = len(weights[0])
        later = [[weight for weight in row[1:] if weight is not None] for row in weights]
        sizes = {len(texts), len(noise), len(documents), len(weights)}
    except (KeyError, IndexError, TypeError):
        sizes = set()
    if len(sizes) != 1:
        raise UserError(
            f"set {held_out}: needs tokens, noise, documents and weights of one length; train the run again"
        )

    binary = all(weight in (0, 1) for row in later for weight in row)
    levels = [(sum(row) if binary else sum(row) / len(row)) if row else None for row in later]
    scale = (0.0, float(horizon - 1)) if binary else _middle_range([level for level in levels if level is not None])
    tokens = [
        Token(
            text=_visible(text),
            kind=kind,
            shade=None if level is None else _shade(level, scale),
            starts_document=p > 0 and documents[p] != documents[p - 1],
            decisions=_decisions(row, binary),
        )
        for p, (text, kind, level, row) in enumerate(zip(texts, noise, levels, weights, strict=True))
    ]
    clean = [weight for row, kind in zip(later, noise, strict=True) if not kind for weight in row]
    noisy = [weight for row, kind in zip(later, noise, strict=True) if kind for weight in row]
    return Passage(held_out, tokens, horizon - 1, binary, scale, _mean(clean), _mean(noisy))


def _shade(level: float, scale: tuple[float, float]) -> int:
    low, high = scale
    fraction = (level - low) / (high - low) if high > low else 0.5
    return round(min(max(fraction, 0), 1) * (SHADES - 1))


def _middle_range(levels: list[float]) -> tuple[float, float]:
    """Return from the 5th to the 95th percentile: a few extreme weights shall not bleach all the others."""
    ordered = sorted(levels)
    cut = len(ordered) // 20
    return ordered[cut], ordered[-1 - cut]


def _decisions(row: list[float | None], binary: bool) -> str:
    known = [(h, weight) for h, weight in enumerate(row) if weight is not None]
    if not known:
        return "no head predicts it"
    return ", ".join(f"head {h} {('drops', 'keeps')[int(w)] if binary else f'{w:.2f}'}" for h, w in known)


def _visible(text: str) -> str:
    """Return control characters as their pictures, but for tabs and line ends."""
    return "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else c for c in text)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
