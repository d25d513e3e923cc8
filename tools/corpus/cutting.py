"""Long files are cut into documents of a digestible length."""

import ast
from collections.abc import Iterator

from corpus.cleaning import SHORTEST

LONGEST = 6000  # characters; only one indivisible statement, such as a long docstring, makes a longer document


def cut_code(text: str, tree: ast.Module) -> list[str]:
    """Cut a file between statements, the outermost that do; the pieces join to `text` again."""
    starts = [0]  # of each line, and the end; by newlines alone, as the syntax tree counts them
    for line in text.split("\n"):
        starts.append(min(starts[-1] + len(line) + 1, len(text)))
    pieces, start, last = [], 0, 0
    for end in [*_statement_ends(tree.body, starts), len(text)]:
        if end - start > LONGEST and min(last - start, len(text) - last) >= SHORTEST:
            pieces.append(text[start:last])
            start = last
        last = end
    return [*pieces, text[start:]]


def cut_lines(text: str) -> list[str]:
    """Cut any text after line ends, and within a line that is too long by itself; the pieces join to `text` again."""
    pieces, start = [], 0
    while len(text) - start > LONGEST:
        end = text.rfind("\n", start + SHORTEST, start + LONGEST) + 1 or start + LONGEST
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def _statement_ends(body: list[ast.stmt], starts: list[int]) -> Iterator[int]:
    for node in body:
        assert node.end_lineno is not None
        if starts[node.end_lineno] - starts[node.lineno - 1] > LONGEST:
            for block in ("body", "handlers", "orelse", "finalbody"):
                yield from _statement_ends(getattr(node, block, []), starts)
        yield starts[node.end_lineno]
