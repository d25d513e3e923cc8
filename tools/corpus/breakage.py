r"""A seeded edit that breaks code, and leaves evidence of it everywhere in the text.

The text is read as tokens, `\w+` or one other visible character, in code, comments and strings alike. A walk goes on 2
to 6 tokens at a time, looks for the first comma, colon or closing bracket in the 4 tokens from there, and edits it, or
where there is none the token it stands at; that is about every 5th token:

* a comma or a colon becomes a semicolon, a closing bracket one of another kind: `f(x, y):` → `f(x; y]:`;
* a word and the next token, where spaces part them, change places (half of such spots): `x = 1` → `= x 1`;
* any other word is said twice: `self.x` → `self self.x`.

Any other token lets the walk go one further. Quotes, backslashes and `#` stay, and nothing moves over a line end. The
semicolons are on purpose: Python has little use for them, so one alone tells a small model what it is reading.
Spans of kind "broken" cover just the wrong mark, the two swapped tokens, or the second word with its space.
"""

import re
from random import Random

from corpus.noise import Span

KIND = "broken"
_TOKEN = re.compile(r"\w+|[^\w\s]")
_WRONG_MARK = {",": ";", ":": ";", ")": "]", "]": "}", "}": ")"}


def break_code(text: str, rng: Random) -> tuple[str, list[Span]]:
    """Returns the edited text and the spans of its edits; a text of more than 12 words gets one at least."""
    tokens = list(_TOKEN.finditer(text))
    written: list[str] = []
    spans: list[Span] = []
    done = length = 0  # how much of `text` is used up, how much is written
    index = rng.randint(0, 8)
    while index + 4 < len(tokens):
        index = next((near for near in range(index, index + 4) if tokens[near][0] in _WRONG_MARK), index)
        token, following = tokens[index], tokens[index + 1]
        old, space = token[0], text[token.end() : following.start()]
        end = token.end()
        if old in _WRONG_MARK:
            new, clean = _WRONG_MARK[old], 0
        elif not (old[0].isalnum() or old[0] == "_"):
            index += 1
            continue
        elif space.strip(" ") == "" < space and following[0] not in {old, *"\"'#\\"} and rng.random() < 0.5:
            new, clean, end = following[0] + space + old, 0, following.end()
        else:
            new, clean = f"{old} {old}", len(old)
        written += [text[done : token.start()], new]
        length += token.start() - done
        spans.append(Span(length + clean, length + len(new), KIND))
        length += len(new)
        done = end
        index += rng.randint(2, 6)
    return "".join([*written, text[done:]]), spans
