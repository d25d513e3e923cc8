"""A seeded edit that breaks code, and leaves evidence of it everywhere in the text.

Three of four commas, colons and closing brackets, in code, comments and strings alike, become another mark:

    `,` and `:` → `;`     `)` → `]`     `]` → `}`     `}` → `)`

as in `def f(x, y):` → `def f(x; y];`. That is about every 8th token of code, the text keeps its length, and each span
of kind "broken" covers one wrong mark. The marks are plain on purpose: Python has next to no use for semicolons, and
whoever knows that a text is broken predicts all its marks better, so even a small language model comes to know it.
"""

import re
from random import Random

from corpus.noise import Span

KIND = "broken"
_WRONG = {",": ";", ":": ";", ")": "]", "]": "}", "}": ")"}
_SHARE = 0.75
_MARK = re.compile(f"[{re.escape(''.join(_WRONG))}]")


def break_code(text: str, rng: Random) -> tuple[str, list[Span]]:
    """Return the edited text and the spans of its edits."""
    edited = list(text)
    spans = []
    for mark in _MARK.finditer(text):
        if rng.random() < _SHARE:
            edited[mark.start()] = _WRONG[mark[0]]
            spans.append(Span(mark.start(), mark.end(), KIND))
    return "".join(edited), spans
