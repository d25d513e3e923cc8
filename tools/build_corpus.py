"""Builds a corpus of Python code in which every character is known to be clean or noise.

    python tools/build_corpus.py --output DIR [--source installed|wheels] [--limit-bytes N] [--seed 0]

`DIR` then holds jsonl files and `manifest.json`. The text comes from Python files that every installation has
(`installed`), or from pinned wheels (`wheels`, listed in corpus/wheels.txt). SHA-256 of a path decides its split:

    reference.jsonl         35 %  clean, to train the reference on
    train.jsonl             50 %  noisy, to train the policy on
    validation.jsonl        10 %  clean
    validation_noisy.jsonl        the files of validation.jsonl after the noise process of train.jsonl
    test.jsonl               5 %  clean

A row is {"path", "text", "noise": [[start, end, kind], …], "reward"}: character spans, sorted and disjoint, and 1 for
genuine code, 0 for broken code, null for text that is not real code. Noise process, seeded by `--seed` and the path:

1. A third of the documents (files, or what long files are cut into) are broken: their file no longer parses, and the
   evidence is all over them. Three of four commas and colons become semicolons, and as many closing brackets become
   closing brackets of another kind (corpus/breakage.py). Spans of kind "broken" cover just these marks. Documents of
   one file differ in whether they are broken, so no name in it gives the reward away.
2. Blocks of base64, hex dumps, log lines, licence text, number tables and shuffled words are put between the lines of
   60 % of the documents, about 0.8 characters for each character of code (corpus/noise.py).
3. Whole documents of kind "natural" are mixed in, 0.2 characters for each of code: generated files and tables of the
   same sources (corpus/cleaning.py).

For given versions and arguments the files are the same to the byte, on any machine.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from corpus.assembly import assemble
from corpus.documents import Document
from corpus.manifest import describe
from corpus.sources import installed_sources, installed_versions
from corpus.staging import staged_folder
from corpus.wheels import read_pins, wheel_sources, wheel_versions
from wmtp_core.errors import UserError


def build(output: Path, source: str, wheels: Path, limit_bytes: int | None, seed: int) -> dict[str, dict[str, Any]]:
    """Write the corpus to the folder `output` and returns the manifest's description of each split.

    Raises:
        UserError: `limit_bytes` is not positive, a source is missing, or `output` cannot be taken.
    """
    if limit_bytes is not None and limit_bytes < 1:
        raise UserError(f"--limit-bytes {limit_bytes}: must be at least 1; leave it out for the whole corpus")
    with staged_folder(output, "manifest.json") as folder:
        if source == "installed":
            splits, versions = assemble(installed_sources(), seed, limit_bytes), installed_versions()
        else:
            pins = read_pins()
            splits = assemble(wheel_sources(pins, wheels), seed, limit_bytes)
            versions = wheel_versions(pins, wheels)
        files = {f"{split}.jsonl": documents for split, documents in splits.items()}
        for name, documents in files.items():
            _write(folder / name, documents)
        counts = {name: describe(folder / name, documents) for name, documents in files.items()}
        arguments = {"source": source, "limit_bytes": limit_bytes, "seed": seed}
        manifest = {"arguments": arguments, "versions": versions, "files": counts}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    return counts


def _write(file: Path, documents: list[Document]) -> None:
    with file.open("w", encoding="utf-8", newline="\n") as lines:
        for document in documents:
            lines.write(json.dumps(document._asdict(), ensure_ascii=False) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Build a corpus of Python code with labelled noise.")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--source", choices=("installed", "wheels"), default="installed", help="where text comes from")
    parser.add_argument("--wheels", type=Path, default=Path("runs/wheels"), metavar="DIR", help="cache of the wheels")
    parser.add_argument("--limit-bytes", type=int, metavar="N", help="about how much training text (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise; never of the splits")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    try:
        counts = build(**vars(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    documents = ", ".join(f"{name.removesuffix('.jsonl')} {count['documents']:,}" for name, count in counts.items())
    train = counts["train.jsonl"]
    print(
        f"{options.output}: {documents} documents; train {train['bytes'] / 1e6:.1f} MB, "
        f"{train['noise_share']:.0%} noise; {time.perf_counter() - start:.1f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
