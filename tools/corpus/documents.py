"""Files become rows of the corpus: cut, broken, soiled, labelled and rewarded."""

from random import Random
from typing import NamedTuple

from corpus import breakage, cleaning, cutting, noise
from corpus.noise import Span

BROKEN_SHARE = 1 / 3  # of the files of a noisy split
NOISED_SHARE = 0.6  # of the documents of code in a noisy split


class Document(NamedTuple):
    """One row: `noise` is sorted and disjoint; `reward` is 1 for genuine code, 0 for broken code, else None."""

    path: str
    text: str
    noise: list[Span]
    reward: float | None


def clean_documents(path: str, text: str) -> list[Document]:
    """The documents of a clean file; none where the file is not clean."""
    tree = cleaning.parse_clean(text)
    if tree is None:
        return []
    pieces = cutting.cut_code(text, tree)
    return [Document(name, piece, [], 1.0) for name, piece in zip(_names(path, pieces), pieces, strict=True)]


def noisy_documents(clean: list[Document], path: str, seed: int) -> list[Document]:
    """A file's clean documents after the noise process: the file may be broken, each document may get noise spans."""
    draw = Random(f"{seed} broken {path}")
    documents = _broken(clean, draw) if draw.random() < BROKEN_SHARE else clean
    soiled = []
    for document in documents:
        rng = Random(f"{seed} noise {document.path}")
        if rng.random() < NOISED_SHARE:
            text, spans = noise.insert_noise(document.text, document.noise, rng)
            document = document._replace(text=text, noise=spans)
        soiled.append(document)
    return soiled


def natural_documents(path: str, text: str) -> list[Document]:
    """The documents of a file that is noise from end to end."""
    pieces = cutting.cut_lines(text)
    return [
        Document(name, piece, [Span(0, len(piece), "natural")], None)
        for name, piece in zip(_names(path, pieces), pieces, strict=True)
    ]


def _broken(clean: list[Document], rng: Random) -> list[Document]:
    broken = []
    for document in clean:
        text, spans = breakage.break_code(document.text, rng)
        broken.append(document._replace(text=text, noise=spans, reward=0.0))
    # A file that is but a docstring may survive its edits; then it stays as it was.
    return broken if cleaning.parse("".join(document.text for document in broken)) is None else clean


def _names(path: str, pieces: list[str]) -> list[str]:
    return [f"{path}#{number}" for number in range(1, len(pieces) + 1)] if len(pieces) > 1 else [path]
