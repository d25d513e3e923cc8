"""From source files to the documents of every split."""

import hashlib
from collections.abc import Iterable
from itertools import chain

from corpus.cleaning import SHORTEST, is_natural_noise
from corpus.documents import Document, clean_documents, natural_documents, noisy_documents
from corpus.sources import SourceFile
from corpus.splits import FEWEST, SHARES, digest, split_of

SPLITS = ("reference", "train", "validation", "validation_noisy", "test")
_CODE_SHARE = 0.5  # characters of code per byte of the training file, noise and JSON included
_NATURAL_SHARE = 0.2  # characters of natural noise per character of clean code, at most


def assemble(sources: Iterable[SourceFile], seed: int, limit: int | None) -> dict[str, list[Document]]:
    """Return the documents of each of `SPLITS`, in an order that the paths alone decide.

    Args:
        limit: about how many bytes the training file shall have (other splits in proportion), or None for all.
    """
    code, natural = _sorted_files(sources)
    clean = _clean_splits(code, limit)
    corpus = {split: list(chain.from_iterable(clean[split].values())) for split in ("reference", "validation", "test")}
    for split, noisy in (("train", "train"), ("validation", "validation_noisy")):
        corpus[noisy] = _noisy(clean[split], [file for file in natural if split_of(file.path) == split], seed)
    return {split: sorted(corpus[split], key=_place) for split in SPLITS}


def _sorted_files(sources: Iterable[SourceFile]) -> tuple[list[SourceFile], list[SourceFile]]:
    """Return candidates for clean code, and natural noise, without short files and duplicates.

    Both are in the order of their paths' digests.
    """
    code: list[SourceFile] = []
    natural: list[SourceFile] = []
    seen = set()
    for file in sorted(sources):
        content = hashlib.sha256(file.text.encode()).digest()
        if len(file.text) >= SHORTEST and content not in seen:
            seen.add(content)
            (natural if file.natural or is_natural_noise(file.text) else code).append(file)
    return sorted(code, key=_place), sorted(natural, key=_place)


def _place(item: SourceFile | Document) -> float:
    return digest(item.path)


def _clean_splits(files: list[SourceFile], limit: int | None) -> dict[str, dict[str, list[Document]]]:
    """Return the clean documents by split and path; parses files only until each split has its share of the limit."""
    splits: dict[str, dict[str, list[Document]]] = {split: {} for split in SHARES}
    sizes = dict.fromkeys(SHARES, 0)
    for file in files:
        split = split_of(file.path)
        wanted = float("inf") if limit is None else limit * _CODE_SHARE * SHARES[split] / SHARES["train"]
        if sizes[split] >= wanted and len(splits[split]) >= FEWEST:
            continue
        if documents := clean_documents(file.path, file.text):
            splits[split][file.path] = documents
            sizes[split] += len(file.text)
    return splits


def _noisy(clean: dict[str, list[Document]], natural: list[SourceFile], seed: int) -> list[Document]:
    documents = [document for pieces in clean.values() for document in noisy_documents(pieces, seed)]
    budget = _NATURAL_SHARE * sum(len(document.text) for pieces in clean.values() for document in pieces)
    candidates = [document for file in natural for document in natural_documents(file.path, file.text)]
    for document in sorted(candidates, key=_place):
        if budget <= 0:
            break
        documents.append(document)
        budget -= len(document.text)
    return documents
