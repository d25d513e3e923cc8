"""What counts as clean code, what as natural noise; everything else is left out of the corpus."""

import ast
import re
import warnings

SHORTEST = 400  # characters; shorter files say nothing
_LONGEST_LINE = 400  # characters
_MOST_DIGITS = {"clean": 0.12, "table": 0.20}  # shares of a text's characters
_GENERATED = re.compile(r"(?im)^#.*generated\b|\bfile is generated\b|\bgenerated from '|\bdo not edit\b")


def is_natural_noise(text: str) -> bool:
    """Return whether a text is a table or generated.

    It has many digits, mostly overlong lines, or a head that says that a program wrote it.
    """
    overlong = sum(len(line) for line in text.split("\n") if len(line) > _LONGEST_LINE)
    table = _digit_share(text) > _MOST_DIGITS["table"]
    return table or overlong > len(text) / 5 or bool(_GENERATED.search(text[:400]))


def parse_clean(text: str) -> ast.Module | None:
    """Return the syntax tree of clean, documented code, or None where the text is not that.

    Between clean code and natural noise lies text that is neither, say code with one overlong line.
    """
    overlong = any(len(line) > _LONGEST_LINE for line in text.split("\n"))
    if overlong or _digit_share(text) > _MOST_DIGITS["clean"] or is_natural_noise(text):
        return None
    tree = parse(text)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    if tree and any(isinstance(node, documented) and ast.get_docstring(node, clean=False) for node in ast.walk(tree)):
        return tree
    return None


def parse(text: str) -> ast.Module | None:
    """Return the syntax tree, or None where the text is not Python; warnings about odd but legal code are dropped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError):
            return None


def _digit_share(text: str) -> float:
    return sum(map(text.count, "0123456789")) / max(1, len(text))
