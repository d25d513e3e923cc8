import ast
import json
import os
import re
import subprocess
import sys
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

import build_corpus

TOOLS = Path(build_corpus.__file__).parent
SPLITS = {"reference", "train", "validation", "validation_noisy", "test"}
INSERTED = {"base64", "hexdump", "log", "licence", "numbers", "shuffled"}

Rows = list[dict[str, Any]]


def text_of(row: dict[str, Any], without: set[str]) -> str:
    """The text of a row without its spans of the given kinds."""
    text = row["text"]
    for start, end, kind in reversed(row["noise"]):
        if kind in without:
            text = text[:start] + text[end:]
    return text


def files_of(rows: Rows, without: set[str]) -> dict[str, str]:
    """The text of each file of code, its documents joined again, without spans of the given kinds."""
    pieces = defaultdict(dict)
    for row in rows:
        if row["reward"] is not None:
            path, _, number = row["path"].partition("#")
            pieces[path][int(number or 1)] = text_of(row, without)
    assert all(sorted(numbers) == list(range(1, len(numbers) + 1)) for numbers in pieces.values())
    return {path: "".join(text for _, text in sorted(numbered.items())) for path, numbered in pieces.items()}


def parses(text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(text)
        except SyntaxError:
            return False
        return True


def shares(rows: Rows) -> dict[str, float]:
    characters = sum(len(row["text"]) for row in rows)
    noise = defaultdict(int)
    for row in rows:
        for start, end, kind in row["noise"]:
            noise[kind] += end - start
    return {kind: count / characters for kind, count in noise.items()}


def test_writes_every_split_and_a_manifest_that_counts_them(corpus: Path, splits: dict[str, Rows]) -> None:
    manifest = json.loads((corpus / "manifest.json").read_text("utf-8"))
    assert set(splits) == SPLITS
    assert manifest["arguments"] == {"source": "installed", "limit_bytes": 600000, "seed": 0}
    assert set(manifest["versions"]) == {"python", "sympy", "networkx"}
    for split, rows in splits.items():
        described = manifest["files"][f"{split}.jsonl"]
        assert described["documents"] == len(rows) >= 4
        assert described["bytes"] == (corpus / f"{split}.jsonl").stat().st_size
        assert described["noise_share_by_kind"] == pytest.approx(shares(rows), abs=1e-4)
    assert 0.7 < manifest["files"]["train.jsonl"]["bytes"] / 600000 < 1.5


@pytest.mark.slow
def test_same_bytes_again_whatever_the_hash_seed(corpus: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(TOOLS / "build_corpus.py"), "--limit-bytes", "600000", "--output", "again"]
    environment = os.environ | {"PYTHONHASHSEED": "1234"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"again: reference \d+, .* documents; train 0\.\d MB, \d+% noise; \d+\.\d s\n", done.stdout)
    names = sorted(file.name for file in corpus.iterdir())
    assert sorted(file.name for file in (tmp_path / "again").iterdir()) == names
    assert all((tmp_path / "again" / name).read_bytes() == (corpus / name).read_bytes() for name in names)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_another_seed_changes_the_noise_and_nothing_else(corpus: Path, tmp_path: Path) -> None:
    assert build_corpus.main(["--output", str(tmp_path / "c"), "--limit-bytes", "600000", "--seed", "1"]) == 0
    same = {s for s in SPLITS if (tmp_path / "c" / f"{s}.jsonl").read_bytes() == (corpus / f"{s}.jsonl").read_bytes()}
    assert same == {"reference", "validation", "test"}


def test_rows_have_the_four_columns_and_relative_paths(splits: dict[str, Rows]) -> None:
    for rows in splits.values():
        assert len({row["path"] for row in rows}) == len(rows)
        for row in rows:
            assert list(row) == ["path", "text", "noise", "reward"]
            assert re.fullmatch(r"(?!/)[\w/.-]+\.py(#\d+)?", row["path"])


def test_splits_share_no_file_and_no_text(splits: dict[str, Rows]) -> None:
    apart = ("reference", "train", "validation_noisy", "test")
    paths = [{row["path"].partition("#")[0] for row in splits[split]} for split in apart]
    assert sum(map(len, paths)) == len(set().union(*paths))
    texts = [row["text"] for split in apart for row in splits[split]]
    assert len(set(texts)) == len(texts)
    assert {row["path"] for row in splits["validation"]} == {
        row["path"] for row in splits["validation_noisy"] if row["reward"] is not None
    }


def test_clean_splits_are_whole_genuine_files(splits: dict[str, Rows]) -> None:
    for split in ("reference", "validation", "test"):
        assert all(row["noise"] == [] and row["reward"] == 1.0 for row in splits[split])
        files = files_of(splits[split], without=set())
        assert len(files) >= 4
        assert all(map(parses, files.values()))


@pytest.mark.parametrize("split", ["train", "validation_noisy"])
def test_files_with_a_broken_document_do_not_parse_and_genuine_ones_do(splits: dict[str, Rows], split: str) -> None:
    broken = {row["path"].partition("#")[0] for row in splits[split] if row["reward"] == 0.0}
    files = files_of(splits[split], without=INSERTED)
    assert {path for path, text in files.items() if not parses(text)} == broken
    assert 0 < len(broken) < len(files)


def test_without_its_spans_a_genuine_document_is_the_clean_one(splits: dict[str, Rows]) -> None:
    clean = {row["path"]: row["text"] for row in splits["validation"]}
    noisy = [row for row in splits["validation_noisy"] if row["reward"] is not None]
    same = {row["path"]: text_of(row, without=INSERTED) == clean[row["path"]] for row in noisy}
    assert same == {row["path"]: row["reward"] == 1.0 for row in noisy}
    assert same.keys() == clean.keys()


def test_spans_are_sorted_disjoint_and_what_they_claim(splits: dict[str, Rows]) -> None:
    looks = {
        "base64": r"([A-Za-z0-9+/=]{1,76}\n)+",
        "hexdump": r"([0-9a-f]{8}  ([0-9a-f]{2} ){16} \|.{16}\|\n)+",
        "log": r"(2024-.*(DEBUG|INFO|WARNING|ERROR) +worker-\d+ .*\n)+",
        "licence": r"(# \d+\.\d .*\.\n)+",
        "numbers": r"([ \d.-]+\n)+",
        "shuffled": r"(\S+( \S+){11}\n)+",
        "broken": r"[;)\]}]",
        "natural": r"(?s).+",
    }
    seen = set()
    for row in splits["train"] + splits["validation_noisy"]:
        done = 0
        for start, end, kind in row["noise"]:
            assert done <= start < end <= len(row["text"])
            assert re.fullmatch(looks[kind], row["text"][start:end]), kind
            done = end
            seen.add(kind)
        if row["reward"] is None:
            assert row["noise"] == [[0, len(row["text"]), "natural"]]
    assert seen == set(looks)


def test_broken_documents_bear_evidence_throughout(splits: dict[str, Rows]) -> None:
    for row in splits["train"]:
        edits = sum(kind == "broken" for _, _, kind in row["noise"])
        left = sum(map(text_of(row, without=INSERTED | {"broken"}).count, ",:)]}"))
        assert edits > left / 2 if row["reward"] == 0.0 else edits == 0


def test_noise_has_its_share(splits: dict[str, Rows]) -> None:
    share = shares(splits["train"])
    assert 0.33 < sum(share.values()) < 0.50
    code = [row for row in splits["train"] if row["reward"] is not None]
    assert 0.45 < sum(any(span[2] in INSERTED for span in row["noise"]) for row in code) / len(code) < 0.75


@pytest.mark.slow
def test_replaces_its_own_folder_and_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    for _ in range(2):
        assert build_corpus.main(["--output", str(mine), "--limit-bytes", "1"]) == 0
    assert build_corpus.main(["--output", str(other), "--limit-bytes", "1"]) == 2
    assert (other / "thesis.txt").read_text() == "precious"
    assert capsys.readouterr().err == f"error: --output {other}: exists and holds no manifest.json; " + (
        "name a new folder, or delete it\n"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "other"]


def test_a_limit_below_one_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build_corpus.main(["--output", str(tmp_path / "c"), "--limit-bytes", "0"]) == 2
    assert capsys.readouterr().err == "error: --limit-bytes 0: must be at least 1; leave it out for the whole corpus\n"
    assert not any(tmp_path.iterdir())
