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


def test_a_third_of_the_documents_is_broken_and_most_get_noise() -> None:
    made = [noisy_documents(clean_documents(f"{n}.py", CODE), seed=0)[0] for n in range(400)]
    assert 0.25 < sum(document.reward == 0.0 for document in made) / len(made) < 0.42
    kinds = [{span.kind for span in document.noise} for document in made]
    assert 0.52 < sum(bool(names - {"broken"}) for names in kinds) / len(made) < 0.68
    assert all(("broken" in names) == (document.reward == 0.0) for names, document in zip(kinds, made, strict=True))


def test_a_broken_document_breaks_its_file_and_leaves_the_others_alone() -> None:
    clean = clean_documents("a.py", LONG)
    mixed = 0
    for seed in range(10):
        noisy = noisy_documents(clean, seed)
        mixed += {document.reward for document in noisy} == {0.0, 1.0}
        for number, document in enumerate(noisy):
            texts = [other.text for other in clean]
            texts[number] = without_blocks(document)
            assert (parse("".join(texts)) is None) == (document.reward == 0.0)
            assert (texts == [other.text for other in clean]) == (document.reward == 1.0)
    assert mixed


def test_a_document_that_survives_its_edits_stays_as_it_was() -> None:
    clean = Document("a.py", f'"""{"Words and nothing but words. " * 20}"""\n', [], 1.0)
    for seed in range(20):
        (document,) = noisy_documents([clean], seed)
        assert (without_blocks(document), document.reward) == (clean.text, 1.0)


def without_blocks(document: Document) -> str:
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
