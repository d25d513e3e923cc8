import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers.normalizers import Strip
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from wmtp_core.errors import UserError
from wmtp_train.data.packed import prepared as module
from wmtp_train.data.packed.packing import unpack
from wmtp_train.data.packed.prepared import PreparedData, prepare, tokenizer_fingerprint

Write = Callable[..., Path]
Prepare = Callable[..., PreparedData]

ROWS = [
    {"text": "alpha beta", "noise": [[6, 10, "hex"]], "reward": 1.0},
    {"prompt": "gamma", "completion": " delta", "reward": 0.0},
    {"chosen": "def one", "rejected": "def two"},
]


def test_what_is_known_of_the_data(make_prepared: Prepare, tokenizer: PreTrainedTokenizerFast) -> None:
    prepared = make_prepared(*ROWS)
    documents = unpack(prepared.rows)["input_ids"]
    assert [tokenizer.decode(ids[:-1]) for ids in documents] == ["alpha beta", "gamma delta", "def one", "def two"]
    assert prepared.documents == 4
    assert prepared.tokens == sum(map(len, documents))
    assert prepared.max_token_id == max(max(ids) for ids in documents)
    assert prepared.label_names == ["hex"]
    assert prepared.has_rewards
    assert prepared.has_pairs
    assert prepared.sequence_length == 8 == len(prepared.rows[0]["input_ids"])
    assert sorted(prepared.fingerprint) == ["corpus", "packing", "tokenizer"]
    assert all(len(bytes.fromhex(part)) == 32 for part in prepared.fingerprint.values())
    assert sorted(path.name for path in prepared.path.iterdir()) == ["manifest.json", "rows.arrow"]
    assert list(prepared.path.parent.iterdir()) == [prepared.path]


def test_without_packing_what_is_cut_off_is_counted(make_prepared: Prepare) -> None:
    rows = [{"text": "alpha"}, {"text": "alpha beta gamma delta " * 3}]
    packed, alone = make_prepared(*rows), make_prepared(*rows, packing=False)
    assert packed.path != alone.path
    assert (packed.cut_off, alone.cut_off) == (0, 1)
    assert len(alone.rows) == alone.documents == 2
    assert alone.tokens < packed.tokens
    assert alone.tokens == sum(map(len, unpack(alone.rows)["input_ids"]))


def test_without_packing_pairs_are_refused(make_prepared: Prepare, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the two texts of a pair .*: set data\.packing to true"):
        make_prepared(*ROWS, packing=False)
    assert list((tmp_path / "cache").iterdir()) == []


def test_plain_text_has_neither_rewards_nor_pairs(make_prepared: Prepare) -> None:
    prepared = make_prepared({"text": "alpha"})
    assert (prepared.has_rewards, prepared.has_pairs, prepared.label_names) == (False, False, [])


def test_the_second_call_opens_what_the_first_one_left(make_prepared: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_prepared(*ROWS)
    monkeypatch.delattr(module, "_build")
    second = make_prepared(*ROWS)
    assert (second.path, second.fingerprint) == (first.path, first.fingerprint)
    assert str(PreparedData.load(first.path).rows[:]) == str(first.rows[:])  # NaN equals nothing, but reads alike


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    files = [jsonl(*ROWS), jsonl(*ROWS * 3, name="more.jsonl")]
    both = [
        prepare(files, tokenizer, "tiny", 8, 3, tmp_path / cache, num_proc=n) for cache, n in (("a", None), ("b", 2))
    ]
    assert both[0].path.name == both[1].path.name
    for name in ("rows.arrow", "manifest.json"):
        assert (both[0].path / name).read_bytes() == (both[1].path / name).read_bytes()


def test_each_part_of_the_fingerprint_has_a_cause_of_its_own(
    tmp_path: Path, jsonl: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    def fingerprint(path: Path, length: int = 8, seed: int = 0, eos: str = "<eos>") -> dict[str, str]:
        own = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token=eos)
        return prepare([path], own, "tiny", length, seed, tmp_path / "cache").fingerprint

    path = jsonl(*ROWS)
    base = fingerprint(path)
    changed = {
        "packing": [fingerprint(path, length=9), fingerprint(path, seed=1)],
        "tokenizer": [fingerprint(path, eos="a")],
        "corpus": [fingerprint(jsonl(*ROWS[:2], name="other.jsonl"))],
    }
    for part, others in changed.items():
        for other in others:
            assert {name for name in base if base[name] != other[name]} == {part}
    assert fingerprint(jsonl(*ROWS, name="renamed.jsonl")) == base


def test_the_tokenizer_of_a_folder_is_the_one_that_was_saved(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)
    loaded.pad_token = "<eos>"
    loaded(["alpha", "beta gamma delta"], truncation=True, max_length=2, padding="max_length")
    assert loaded.backend_tokenizer.truncation, "the call has left its traces"
    assert tokenizer_fingerprint(loaded) == tokenizer_fingerprint(tokenizer)


def test_processes_that_prepare_at_once_share_one_folder(two_ranks: Path) -> None:
    folders = [(two_ranks / f"prepared-{rank}").read_text() for rank in range(2)]
    assert folders[0] == folders[1]
    assert [str(path) for path in (two_ranks / "cache").iterdir()] == folders[:1]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match=r"corpus\.jsonl:2: broken JSON"):
        prepare([jsonl({"text": "a"}, "{")], tokenizer, "tiny", 8, 0, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_every_label_ignored(tmp_path: Path, jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.normalizer = Strip()
    strict = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    with pytest.raises(UserError, match=r"corpus\.jsonl: every label is ignored, .*check the texts"):
        prepare([jsonl({"text": "  "})], strict, "some/strict", 8, 0, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("seen_before", [False, True])
def test_a_token_beyond_the_vocabulary(
    tmp_path: Path, jsonl: Write, tokenizer: PreTrainedTokenizerFast, seen_before: bool
) -> None:
    top = max(tokenizer.encode("alpha", add_special_tokens=False))
    arguments: list[Any] = [[jsonl({"text": "alpha"})], tokenizer, "some/tokenizer", 8, 0, tmp_path / "cache"]
    if seen_before:
        prepare(*arguments, vocab_size=top + 1)
    with pytest.raises(UserError, match=rf"some/tokenizer: .* up to {top}, .*vocabulary ends at {top - 1}"):
        prepare(*arguments, vocab_size=top)


def test_tokenizers_that_cannot_be_used(tmp_path: Path, jsonl: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    path, cache = jsonl({"text": "alpha"}), tmp_path / "cache"
    no_eos = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(UserError, match="tokenizer tiny: it has no EOS token"):
        prepare([path], no_eos, "tiny", 8, 0, cache)
    with pytest.raises(UserError, match="sequence_length 1"):
        prepare([path], tokenizer, "tiny", 1, 0, cache)
    with pytest.raises(UserError, match="tokenizer tiny: not a fast tokenizer"):
        prepare([path], SimpleNamespace(is_fast=False), "tiny", 8, 0, cache)  # type: ignore[arg-type]
    assert not cache.exists()


def test_folders_that_were_not_prepared(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing: no such folder: make it with `wmtp prepare`"):
        PreparedData.load(tmp_path / "missing")
    with pytest.raises(UserError, match=r"no manifest\.json"):
        PreparedData.load(tmp_path)


def test_a_cache_that_was_damaged_is_refused_and_made_again_when_removed(
    tmp_path: Path, jsonl: Write, tokenizer: PreTrainedTokenizerFast
) -> None:
    arguments = ([jsonl({"text": "alpha beta"})], tokenizer, "tiny", 8, 0, tmp_path / "cache")
    folder = prepare(*arguments).path
    manifest = (folder / "manifest.json").read_text()
    content = json.loads(manifest)
    without_kinds = {key: value for key, value in content.items() if key != "kinds"}
    for damaged in (manifest[:-5], "{}", "[]", json.dumps(without_kinds), json.dumps(content | {"more": 1})):
        (folder / "manifest.json").write_text(damaged)
        with pytest.raises(UserError, match=r"manifest\.json is damaged or of an older version: remove the folder"):
            prepare(*arguments)
    (folder / "manifest.json").write_text(manifest)
    os.truncate(folder / "rows.arrow", 300)
    with pytest.raises(UserError, match=r"rows\.arrow: .*damaged.*: remove the folder, and it is made again"):
        prepare(*arguments)
    shutil.rmtree(folder)
    assert len(prepare(*arguments).rows) == 1
