from corpus.cleaning import parse
from corpus.cutting import LONGEST
from corpus.documents import Document, clean_documents, natural_documents, noisy_documents

CODE = '"""Adds."""\n\n' + "".join(f"\n\ndef add_{n}(a, b):\n    return a + b + {n % 7}\n" for n in range(12))
LONG = '"""Adds."""\n' + "".join(f"\n\ndef a(x):\n{'    x = x + x' * 1}\n{'    # more' * 20}\n" for _ in range(60))


def test_a_clean_file_is_one_document_or_numbered_ones() -> None:
    assert clean_documents("a.py", CODE) == [Document("a.py", CODE, [], 1.0)]
    documents = clean_documents("a.py", LONG)
    assert [document.path for document in documents] == [f"a.py#{n}" for n in range(1, len(documents) + 1)]
    assert len(documents) > 1
    assert "".join(document.text for document in documents) == LONG


def test_a_file_that_is_not_clean_has_none() -> None:
    assert clean_documents("a.py", "def f(:\n") == []


def test_a_third_of_the_files_is_broken_and_most_documents_get_noise() -> None:
    made = [noisy_documents(clean_documents(f"{n}.py", CODE), f"{n}.py", seed=0)[0] for n in range(400)]
    assert 0.25 < sum(document.reward == 0.0 for document in made) / len(made) < 0.42
    kinds = [{span.kind for span in document.noise} for document in made]
    assert 0.52 < sum(bool(names - {"broken"}) for names in kinds) / len(made) < 0.68
    assert all(("broken" in names) == (document.reward == 0.0) for names, document in zip(kinds, made, strict=True))


def test_every_document_of_a_broken_file_is_edited() -> None:
    clean = clean_documents("a.py", LONG)
    broken = next(made for seed in range(50) if (made := noisy_documents(clean, "a.py", seed))[0].reward == 0.0)
    assert len(broken) == len(clean)
    for document in broken:
        assert document.reward == 0.0
        assert any(span.kind == "broken" for span in document.noise)


def test_a_file_that_no_edit_breaks_stays_genuine() -> None:
    text = f'"""{"Words and nothing but words. " * 20}"""\n'
    for seed in range(20):
        (document,) = noisy_documents([Document("a.py", text, [], 1.0)], "a.py", seed)
        assert document.reward == (0.0 if parse(_without_blocks(document)) is None else 1.0) == 1.0


def _without_blocks(document: Document) -> str:
    text = document.text
    for span in reversed(document.noise):
        if span.kind != "broken":
            text = text[: span.start] + text[span.end :]
    return text


def test_natural_noise_is_labelled_from_end_to_end() -> None:
    documents = natural_documents("table.po", "0x41 0x42\n" * 2000)
    assert "".join(document.text for document in documents) == "0x41 0x42\n" * 2000
    for document in documents:
        assert len(document.text) <= LONGEST
        assert document.noise == [(0, len(document.text), "natural")]
        assert document.reward is None
