"""Seeded blocks of noise inside a clean document, each with the span of characters that it takes."""

import base64
import re
from collections.abc import Callable
from random import Random
from typing import NamedTuple

# A block's characters, and the characters added per character of the document; with the natural noise documents and
# the broken code, this makes about two fifths of the training text noise.
_BLOCK = (150, 900)
_DENSITY = (0.45, 1.0)


class Span(NamedTuple):
    """Characters `start` (included) to `end` (excluded) of a text are noise of this kind."""

    start: int
    end: int
    kind: str


def insert_noise(text: str, spans: list[Span], rng: Random) -> tuple[str, list[Span]]:
    """Put blocks of noise at seeded line starts of `text`, and move the given `spans` along.

    No given span may cross a line end. Returns the new text and all its spans, sorted and disjoint.
    """
    line_starts = [0, *(newline.end() for newline in re.finditer("\n", text))]
    blocks: list[tuple[int, str, str]] = []
    budget = len(text) * rng.uniform(*_DENSITY)
    while budget > 0:
        kind = rng.choice(list(KINDS))
        block = KINDS[kind](rng, rng.randint(*_BLOCK), text)
        blocks.append((rng.choice(line_starts), kind, block))
        budget -= len(block)
    written: list[str] = []
    noise: list[Span] = []
    rest, done, shift = list(spans), 0, 0
    for place, kind, block in sorted(blocks):
        while rest and rest[0].start < place:
            noise.append(_moved(rest.pop(0), shift))
        written += [text[done:place], block]
        noise.append(Span(place + shift, place + shift + len(block), kind))
        done, shift = place, shift + len(block)
    noise += [_moved(span, shift) for span in rest]
    return "".join([*written, text[done:]]), noise


def _moved(span: Span, shift: int) -> Span:
    return Span(span.start + shift, span.end + shift, span.kind)


def _lines_until(length: int, line: Callable[[], str]) -> str:
    lines = [line()]
    while sum(map(len, lines)) < length:
        lines.append(line())
    return "\n".join(lines) + "\n"


def _base64(rng: Random, length: int, _text: str) -> str:
    code = base64.b64encode(rng.randbytes(length * 3 // 4)).decode()
    return "\n".join(code[start : start + 76] for start in range(0, len(code), 76)) + "\n"


def _hexdump(rng: Random, length: int, _text: str) -> str:
    address = rng.randrange(0, 1 << 24, 16)

    def line() -> str:
        nonlocal address
        address += 16
        row = rng.randbytes(16)
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        return f"{address:08x}  {row.hex(' ')}  |{shown}|"

    return _lines_until(length, line)


def _log(rng: Random, length: int, _text: str) -> str:
    day, seconds = f"2024-0{rng.randint(1, 9)}-{rng.randint(10, 28)}", rng.randrange(86400)

    def line() -> str:
        nonlocal seconds
        seconds = (seconds + rng.randrange(9)) % 86400
        clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02},{rng.randrange(1000):03}"
        head = f"{day} {clock} {rng.choice(_LEVELS):7} worker-{rng.randrange(64)} {rng.choice(_EVENTS)}"
        return f"{head} id={rng.randbytes(4).hex()} took={rng.randrange(5000)}ms status={rng.choice(_STATUSES)}"

    return _lines_until(length, line)


def _licence(rng: Random, length: int, _text: str) -> str:
    def line() -> str:
        who, may, what, if_only = (rng.choice(words) for words in _LICENCE)
        return f"# {rng.randint(1, 19)}.{rng.randint(1, 9)} {who} {may} {what} {if_only}."

    return _lines_until(length, line)


def _numbers(rng: Random, length: int, _text: str) -> str:
    columns = rng.randint(3, 8)
    return _lines_until(length, lambda: " ".join(f"{rng.gauss(0, 1000):12.4f}" for _ in range(columns)))


def _shuffled(rng: Random, length: int, text: str) -> str:
    words = text.split()
    return _lines_until(length, lambda: " ".join(rng.choices(words, k=12)))


_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_STATUSES = (200, 204, 404, 500, 503)
_EVENTS = ("request done", "cache miss", "retry scheduled", "connection reset", "heartbeat late", "queue drained")
_LICENCE = (
    ("The Recipient", "Each Contributor", "The Holder of these Rights", "Any Party to this Grant", "The Distributor"),
    ("shall under no circumstances", "may, without charge,", "hereby agrees to", "is not obliged to", "must promptly"),
    ("convey the Work", "disclaim every warranty", "retain the notices", "indemnify the Author", "publish the Changes"),
    (
        "provided that this paragraph accompanies every copy",
        "to the fullest extent that the governing law allows",
        "whether in contract, in tort or otherwise",
        "notwithstanding any claim to the contrary",
        "as long as the conditions set out above are met",
    ),
)

KINDS: dict[str, Callable[[Random, int, str], str]] = {
    "base64": _base64,
    "hexdump": _hexdump,
    "log": _log,
    "licence": _licence,
    "numbers": _numbers,
    "shuffled": _shuffled,
}
