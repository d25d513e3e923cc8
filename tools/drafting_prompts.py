"""Write prompts of two kinds, English questions and beginnings of Python functions, for a model to answer.

    python tools/drafting_prompts.py --output runs/prompts

`chat.jsonl` and `python.jsonl` are for training, `held_out_chat.jsonl` and `held_out_python.jsonl` for measuring: other
topics, and functions of other modules. The same interpreter gives the same files.
"""

import argparse
import ast
import hashlib
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wmtp_core import UserError
from wmtp_train.atomic_io import atomic_file
from wmtp_train.ranks.lifecycle import run

_TOPICS = (
    "rain", "volcanoes", "bread", "the moon", "a bicycle", "vaccines", "the stock market", "chess", "coral reefs",
    "batteries", "the printing press", "earthquakes", "coffee", "glaciers", "black holes", "the heart", "a compass",
    "bees", "democracy", "photosynthesis", "a refrigerator", "tides", "inflation", "jazz", "the internet", "glass",
    "dreams", "soil", "a violin", "rockets", "the alphabet", "sleep", "rivers", "salt", "a telescope", "memory",
    "the Silk Road", "wind turbines", "cheese", "gravity",
)  # fmt: skip
_QUESTIONS = (
    "Explain {} in simple words.",
    "Give me five facts about {}.",
    "Write a short story about {}.",
    "What should a beginner know about {}?",
    "Write a short poem about {}.",
    "How would you describe {} to a child?",
    "Why does {} matter?",
    "Write a letter to a friend about {}.",
    "What are common mistakes that people make about {}?",
    "Make a list of questions that one could ask about {}.",
)
_HELD_OUT = 5  # one in so many topics and modules is kept for measuring
_LONGEST = 400  # characters of a function's beginning


def main() -> None:
    """Write the four files."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--train", type=int, default=250, help="prompts of each kind to learn from")
    parser.add_argument("--held-out", type=int, default=32, help="prompts of each kind to measure with")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for kind, found in (("chat", list(questions())), ("python", list(function_beginnings()))):
        for name, held_out, wanted in ((kind, False, options.train), (f"held_out_{kind}", True, options.held_out)):
            rows = sorted((row for group, row in found if _is_held_out(group) == held_out), key=_shuffled)[:wanted]
            if len(rows) < wanted:
                raise UserError(f"there are {len(rows)} {kind} prompts for {name}.jsonl, not {wanted}: ask for fewer")
            with atomic_file(options.output / f"{name}.jsonl") as partial:
                partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
            print(f"{options.output / name}.jsonl: {len(rows)} prompts")


def questions() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a topic and a conversation that asks something about it."""
    for topic in _TOPICS:
        for question in _QUESTIONS:
            yield topic, {"messages": [{"role": "user", "content": question.format(topic)}]}


def function_beginnings() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a module of the standard library and a prompt: a function of it up to the end of its docstring."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        module = path.relative_to(library).as_posix()
        if any(part in ("test", "tests", "site-packages", "idlelib", "lib2to3") for part in path.parts):
            continue
        try:
            source = path.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (UnicodeDecodeError, SyntaxError):
            continue  # of another encoding or another Python: there are enough others
        for function in tree.body:
            if isinstance(function, ast.FunctionDef) and ast.get_docstring(function):
                end = function.body[0].end_lineno
                beginning = "\n".join(source.splitlines()[function.lineno - 1 : end]) + "\n"
                if len(beginning) <= _LONGEST:
                    yield module, {"prompt": beginning}


def _is_held_out(group: str) -> bool:
    return int(hashlib.sha256(group.encode()).hexdigest(), 16) % _HELD_OUT == 0


def _shuffled(row: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(row).encode()).hexdigest()


if __name__ == "__main__":
    run(main, "start again")
