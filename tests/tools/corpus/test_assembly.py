from corpus.assembly import SPLITS, assemble
from corpus.sources import SourceFile
from corpus.splits import FEWEST, digest, split_of

CODE = [SourceFile(f"pkg/m{n}.py", f'"""Module {n}."""\n' + f"value_{n} = compute(value)\n" * 60) for n in range(300)]
TABLES = [SourceFile(f"pkg/t{n}.py", f"table {n}\n" + "0x41, 0x42,\n" * 200, natural=n % 2 == 0) for n in range(200)]


def test_the_order_of_the_files_does_not_matter() -> None:
    assert assemble([*CODE, *TABLES], 0, 40000) == assemble([*reversed(TABLES), *reversed(CODE)], 0, 40000)


def test_files_go_where_their_path_says() -> None:
    corpus = assemble([*CODE, *TABLES], 0, None)
    assert tuple(corpus) == SPLITS
    for split, documents in corpus.items():
        assert {split_of(document.path) for document in documents} == {split.removesuffix("_noisy")}
        assert [digest(document.path) for document in documents] == sorted(digest(d.path) for d in documents)
    everything = [document.path for split in SPLITS if split != "validation" for document in corpus[split]]
    assert {file.path for file in CODE} <= set(everything)


def test_natural_noise_is_a_fifth_of_the_code_and_only_where_noise_belongs() -> None:
    corpus = assemble([*CODE, *TABLES], 0, None)
    for split in SPLITS:
        natural = sum(len(document.text) for document in corpus[split] if document.reward is None)
        code = sum(len(file.text) for file in CODE if split_of(file.path) == split.removesuffix("_noisy"))
        assert (0 if split in ("reference", "validation", "test") else 0.2 * code) <= natural
        assert natural <= (0.2 * code + 3000 if split in ("train", "validation_noisy") else 0)


def test_a_limit_takes_a_part_of_each_split_and_never_less_than_a_handful() -> None:
    whole, part, least = (assemble([*CODE, *TABLES], 0, limit) for limit in (None, 150_000, 1))
    size = {name: sum(len(d.text) for d in corpus["train"]) for name, corpus in (("whole", whole), ("part", part))}
    assert 100_000 < size["part"] < 200_000 < size["whole"]
    for split in SPLITS:
        code = [sum(document.reward is not None for document in corpus[split]) for corpus in (whole, part, least)]
        assert code[0] > code[1] >= code[2] == FEWEST
        assert {d.path for d in least[split] if d.reward is not None} <= {d.path for d in whole[split]}


def test_duplicates_and_short_files_are_dropped() -> None:
    copies = [file._replace(path=f"z/{file.path}") for file in CODE[:40]]
    corpus = assemble([*copies, *CODE[:40], SourceFile("short.py", '"""Short."""\n')], 0, None)
    paths = {document.path for documents in corpus.values() for document in documents}
    assert paths == {file.path for file in CODE[:40]}
