"""Files become rows of the corpus: cut, broken, noised, labelled and rewarded."""

from random import Random
from typing import NamedTuple

from corpus import breakage, cleaning, cutting, noise
from corpus.noise import Span

BROKEN_SHARE = 1 / 3  # of the documents of code in a noisy split
NOISED_SHARE = 0.6  # of the documents of code in a noisy split


class Document(NamedTuple):
    """One row: `noise` is sorted and disjoint; `reward` is 1 for genuine code, 0 for broken code, else None."""

    path: str
    text: str
    noise: list[Span]
    reward: float | None


def clean_documents(path: str, text: str) -> list[Document]:
    """Return the documents of a clean file; none where the file is not clean."""
    tree = cleaning.parse_clean(text)
    if tree is None:
        return []
    pieces = cutting.cut_code(text, tree)
    return [Document(name, piece, [], 1.0) for name, piece in zip(_names(path, pieces), pieces, strict=True)]


def noisy_documents(clean: list[Document], seed: int) -> list[Document]:
    """Return a file's clean documents after the noise process: each may be broken, and each may get noise spans."""
    noisy = []
    for number, document in enumerate(clean):
        rng = Random(f"{seed} {document.path}")
        if rng.random() < BROKEN_SHARE:
            document = _broken(clean, number, rng)
        if rng.random() < NOISED_SHARE:
            text, spans = noise.insert_noise(document.text, document.noise, rng)
            document = document._replace(text=text, noise=spans)
        noisy.append(document)
    return noisy


def natural_documents(path: str, text: str) -> list[Document]:
    """Return the documents of a file that is noise from end to end."""
    pieces = cutting.cut_lines(text)
    return [
        Document(name, piece, [Span(0, len(piece), "natural")], None)
        for name, piece in zip(_names(path, pieces), pieces, strict=True)
    ]


def _broken(clean: list[Document], number: int, rng: Random) -> Document:
    text, spans = breakage.break_code(clean[number].text, rng)
    file = [*clean[:number], clean[number]._replace(text=text), *clean[number + 1 :]]
    if cleaning.parse("".join(document.text for document in file)) is None:
        return file[number]._replace(noise=spans, reward=0.0)
    return clean[number]  # nothing but a docstring or comments: it survived the edits, so it stays as it was


def _names(path: str, pieces: list[str]) -> list[str]:
    return [f"{path}#{number}" for number in range(1, len(pieces) + 1)] if len(pieces) > 1 else [path]
