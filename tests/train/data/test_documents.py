import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from wmtp_core.errors import UserError
from wmtp_train.data.corpus import read_texts
from wmtp_train.data.documents import noise_kinds, token_noise, tokenise
from wmtp_train.data.packed.storage import write_arrow

Write = Callable[..., Path]


def load(path: Path) -> datasets.Dataset:
    write_arrow(path.with_suffix(".arrow"), read_texts([path]))
    return datasets.Dataset.from_file(str(path.with_suffix(".arrow")))


@pytest.fixture
def tokens_of(jsonl: Write, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[..., list[dict[str, Any]]]:
    def run(
        *rows: dict[str, Any], tokenizer: PreTrainedTokenizerFast = tokenizer, **options: Any
    ) -> list[dict[str, Any]]:
        texts = load(jsonl(*rows))
        return list(tokenise(texts, tokenizer, noise_kinds(texts), tmp_path / "documents.arrow", **options))

    return run


def test_a_text_is_its_tokens_and_eos_all_of_them_targets(
    tokens_of: Callable[..., Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    text = "def one(two): ünïcödé 数 🙂"
    (document,) = tokens_of({"text": text})
    assert document["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.decode(document["input_ids"][:-1]) == text
    assert (document["masked"], document["reward"], document["pair"]) == (0, None, 0)
    assert "noise" not in document


def test_a_prompt_is_masked_and_a_rejected_text_altogether(
    tokens_of: Callable[..., Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    documents = tokens_of(
        {"prompt": "def one", "completion": "(two)", "reward": 0.25},
        {"prompt": "al", "chosen": "pha", "rejected": "beta"},
    )
    for document, start, rest in zip(documents, ["def one", "al", "al"], ["(two)", "pha", "beta"], strict=True):
        prompt = tokenizer.encode(start, add_special_tokens=False)
        completion = tokenizer.encode(rest, add_special_tokens=False)
        assert document["input_ids"] == [*prompt, *completion, tokenizer.eos_token_id]
        assert document["masked"] == (len(document["input_ids"]) if rest == "beta" else len(prompt))
    assert [document["pair"] for document in documents] == [0, 1, -1]
    assert [document["reward"] for document in documents] == [0.25, None, None]


def test_a_tokenizer_that_adds_bos_by_itself_begins_each_document_with_it(
    tokens_of: Callable[..., Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.add_special_tokens(["<bos>"])
    bos = backend.token_to_id("<bos>")
    backend.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    with_bos = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", bos_token="<bos>")
    row = {"text": "alpha", "noise": [[0, 5, "all"]]}
    (plain,), (begun,) = tokens_of(row), tokens_of(row, tokenizer=with_bos)
    assert begun["input_ids"] == [bos, *plain["input_ids"]]
    assert (begun["masked"], begun["noise"]) == (1, [0, *plain["noise"]])


def test_noise_reaches_the_tokens_under_its_spans(
    tokens_of: Callable[..., Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    text = "alpha beta gamma delta"
    first, second = tokens_of({"text": text, "noise": [[6, 10, "log"], [11, 16, "hex"]]}, {"text": text})
    marked = {
        kind: [t for t, k in zip(first["input_ids"], first["noise"], strict=True) if k == kind] for kind in (1, 2)
    }
    assert {kind: tokenizer.decode(ids).strip() for kind, ids in marked.items()} == {1: "gamma", 2: "beta"}
    assert set(second["noise"]) == {0}


@given(st.data())
def test_token_noise_counts_characters(data: st.DataObject) -> None:
    kinds = ["a", "b", "c"]
    ends = sorted(data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=12)))
    offsets = list(zip([0, *ends[:-1]], ends, strict=True))
    spans = [
        {"start": min(ends_), "end": max(ends_), "kind": data.draw(st.sampled_from(kinds))}
        for ends_ in data.draw(st.lists(st.tuples(st.integers(0, 35), st.integers(0, 35)), max_size=4))
    ]
    expected = []
    for start, end in offsets:
        token = 0
        for number, kind in enumerate(kinds, start=1):
            hit = [c for c in range(start, end) if any(s["kind"] == kind and s["start"] <= c < s["end"] for s in spans)]
            if hit and len(hit) >= (end - start) / 2:
                token = number
        expected.append(token)
    assert token_noise(offsets, spans, kinds).tolist() == expected


def test_kinds_are_sorted_and_bounded(jsonl: Write) -> None:
    rows = [{"text": "ab", "noise": [[0, 1, kind]]} for kind in ("log", "hex", "log")]
    assert noise_kinds(load(jsonl(*rows, {"text": "clean"}))) == ["hex", "log"]
    with pytest.raises(UserError, match="128 kinds of noise"):
        noise_kinds(load(jsonl(*[{"text": "ab", "noise": [[0, 1, str(n)]]} for n in range(128)])))


def test_processes_change_nothing(tokens_of: Callable[..., Any]) -> None:
    rows = [{"text": f"alpha {n} beta " * n, "noise": [[0, n, "hex"]], "reward": n} for n in range(1, 30)]
    assert tokens_of(*rows) == tokens_of(*rows, num_proc=2)


def test_a_batch_of_clean_documents_has_the_column_too(tokens_of: Callable[..., Any]) -> None:
    rows = [{"text": "alpha"}] * 300 + [{"text": "alpha", "noise": [[0, 5, "hex"]]}]  # more than one batch
    documents = tokens_of(*rows)
    assert {max(document["noise"]) for document in documents[:300]} == {0}
    assert max(documents[300]["noise"]) == 1
