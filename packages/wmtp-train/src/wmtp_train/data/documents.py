"""Documents as text → documents as tokens.

A document is [BOS, where the tokenizer adds one by itself] + prompt + text + EOS. Prompt and text are tokenised apart,
as they will be when the model is asked to continue a prompt. A conversation is what its chat template renders, and what
came as tokens stays so: to these nothing is added.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerFast

from wmtp_core.errors import UserError
from wmtp_models.generation.text import bos_prefix
from wmtp_train.data.conversations import ChatTemplate


def noise_kinds(texts: datasets.Dataset) -> list[str]:
    """Return the kinds of the noise spans, sorted: kind k of a token means `kinds[k - 1]`. At most 127."""
    spans = pc.list_flatten(texts.with_format("arrow")[:]["noise"])
    kinds = sorted(pc.unique(pc.struct_field(spans, "kind")).to_pylist())
    if len(kinds) > 127:
        raise UserError(
            f"corpus: {len(kinds)} kinds of noise, such as {kinds[0]!r}: a token's kind is stored in 7 bits"
        )
    return kinds


def tokenise(
    texts: datasets.Dataset,
    tokenizer: PreTrainedTokenizerFast,
    kinds: Sequence[str],
    cache_file: Path,
    num_proc: int | None = None,
    chat: ChatTemplate | None = None,
) -> datasets.Dataset:
    """Return one row a document, in the order of `texts` (rows of `corpus.TEXT_SCHEMA`), kept in `cache_file`.

    Columns: `input_ids` list<int32>, ending in EOS; `masked` int32, the tokens at the start that are no targets;
    `learned` list<int8>, if there are conversations or tokens: 0 for what else is no target; `noise` list<int8> if
    there are kinds; `reward` float32 (null unknown); `pair` int32. `num_proc` changes speed only. Conversations are
    rendered by `chat`; default the tokenizer's own template.

    Raises:
        UserError: a conversation cannot be rendered; the message names its file and line.
    """
    columns = texts.with_format("arrow")[:]
    partly = any(columns[name].null_count < len(texts) for name in ("conversation", "input_ids"))
    documents = texts.with_format("arrow").map(
        _tokenise_batch,
        batched=True,
        batch_size=256,
        remove_columns=texts.column_names,
        fn_kwargs={
            "tokenizer": tokenizer,
            "bos": bos_prefix(tokenizer),
            "kinds": kinds,
            "chat": (chat or ChatTemplate(tokenizer, None, {})) if partly else None,
        },
        num_proc=num_proc,
        cache_file_name=str(cache_file),
        load_from_cache_file=False,
        new_fingerprint="documents",  # or `datasets` would pickle the tokenizer to make one up
        desc="tokenizing",
    )
    return documents.with_format(None)


def _tokenise_batch(
    texts: pa.Table,
    tokenizer: PreTrainedTokenizerFast,
    bos: list[int],
    kinds: Sequence[str],
    chat: ChatTemplate | None,
) -> pa.Table:
    prompts = tokenizer(texts["prompt"].to_pylist(), add_special_tokens=False, verbose=False)["input_ids"]
    encoded = tokenizer(
        texts["text"].to_pylist(), add_special_tokens=False, return_offsets_mapping=bool(kinds), verbose=False
    )
    ids = [
        [*bos, *prompt, *text, tokenizer.eos_token_id]
        for prompt, text in zip(prompts, encoded["input_ids"], strict=True)
    ]
    prefixes = [len(bos) + len(prompt) for prompt in prompts]
    learned = [[1] * len(row) for row in ids]
    if chat is not None:
        for number, (said, tokens, labels) in enumerate(
            zip(*(texts[name].to_pylist() for name in ("conversation", "input_ids", "labels")), strict=True)
        ):
            if said is not None:
                ids[number], learned[number] = chat.encode(**json.loads(said))
            elif tokens is not None:
                ids[number], learned[number] = tokens, [int(label != -100) for label in labels]
            if said is not None or tokens is not None:
                prefixes[number] = learned[number].index(1)
    rejected = texts["rejected"].to_pylist()
    columns: dict[str, pa.Array] = {
        "input_ids": pa.array(ids, pa.list_(pa.int32())),
        "masked": pa.array(
            [len(row) if no else prefix for row, no, prefix in zip(ids, rejected, prefixes, strict=True)], pa.int32()
        ),
        "reward": texts["reward"],
        "pair": texts["pair"],
    }
    if chat is not None:
        columns["learned"] = pa.array(learned, pa.list_(pa.int8()))
    if kinds:
        spans, offsets = texts["noise"].to_pylist(), encoded["offset_mapping"]
        noise = [
            np.pad(token_noise(here, document, kinds), (prefix, len(row) - prefix - len(here)))
            for here, document, prefix, row in zip(offsets, spans, prefixes, ids, strict=True)
        ]  # BOS, prompt and EOS are clean
        columns["noise"] = pa.array(noise, pa.list_(pa.int8()))
    return pa.table(columns)


def token_noise(
    offsets: Sequence[tuple[int, int]], spans: Sequence[dict[str, Any]], kinds: Sequence[str]
) -> np.ndarray:
    """Return the noise kind of each token, int8 [tokens]: k ≥ 1 for `kinds[k - 1]`, 0 clean.

    A token is noise of a kind if spans of that kind hold at least half of its characters; of two such kinds the
    later in `kinds` wins. `offsets` and `spans` (dicts of start, end, kind) count characters of one text.
    """
    starts, ends = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    noise = np.zeros(len(starts), dtype=np.int8)
    for kind in sorted({span["kind"] for span in spans}, key=kinds.index):
        inside = np.zeros(max(ends.max(initial=0), max(span["end"] for span in spans)) + 1, dtype=np.int64)
        for span in spans:
            if span["kind"] == kind:
                inside[span["start"] + 1 : span["end"] + 1] = 1
        before = inside.cumsum()  # before[c]: the characters of this kind among the first c
        noise[(ends > starts) & (2 * (before[ends] - before[starts]) >= ends - starts)] = kinds.index(kind) + 1
    return noise
