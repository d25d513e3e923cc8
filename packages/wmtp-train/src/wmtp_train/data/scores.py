"""Scored reference losses: one number per token beside the prepared data, and the proof that they belong together."""

import json
from collections.abc import Mapping
from pathlib import Path

import datasets

from wmtp_core.errors import UserError
from wmtp_train.data.packed.prepared import PreparedData
from wmtp_train.data.packed.storage import open_arrow

COLUMN_FILE = "reference_ce.arrow"
FINGERPRINT_FILE = "fingerprint.json"
FIX = "remove the folder, and score again with `wmtp score`"


def partial_folder(output: Path) -> Path:
    """Return where the shards of unfinished scores lie: beside their folder, so that the last rename is atomic."""
    return output.with_name(output.name + ".partial")


def read_fingerprint(folder: Path) -> dict[str, str]:
    """Return a score folder's fingerprint: its corpus, tokenizer, packing, reference, dtype and computed_in.

    Raises:
        UserError: it is broken.
    """
    try:
        return dict(json.loads((folder / FINGERPRINT_FILE).read_bytes()))
    except (ValueError, TypeError) as error:  # of JSON, of UTF-8, and of what is no dict
        raise UserError(f"{folder / FINGERPRINT_FILE}: damaged: {FIX}") from error


def check_fingerprint(folder: Path, wanted: Mapping[str, str]) -> None:
    """Raise UserError for the first part of the fingerprint in `folder` that is not the wanted one."""
    stored = read_fingerprint(folder)
    for part, value in wanted.items():
        if stored.get(part) != value:
            raise UserError(
                f"scores {folder}: they were made with another {part} ({stored.get(part)!s:.12}, not {value:.12}): "
                "score again with `wmtp score` into another folder, or remove this one first"
            )


def load_scores(path: str | Path, prepared: PreparedData, reference_fingerprint: str | None = None) -> datasets.Dataset:
    """Return the column `reference_ce` of `prepared.rows`.

    Returns:
        list<float32 or float16>`[S]` in nats, 0 at padding and first tokens.

    Raises:
        UserError: the folder is missing, unfinished, no score folder, or made from another corpus, tokenizer, packing
            or (if `reference_fingerprint` is given) reference.
    """
    path = Path(path)
    if not path.is_dir():
        problem = "they are unfinished" if partial_folder(path).is_dir() else "no such folder"
        raise UserError(f"scores {path}: {problem}: finish or make them with `wmtp score`")
    if not (path / FINGERPRINT_FILE).is_file():
        raise UserError(
            f"scores {path}: it holds no {FINGERPRINT_FILE}, so it is no score folder: "
            "name another one, such as `wmtp score` makes"
        )
    reference = {} if reference_fingerprint is None else {"reference": reference_fingerprint}
    check_fingerprint(path, prepared.fingerprint | reference)
    return open_arrow(path / COLUMN_FILE, len(prepared.rows), FIX)
