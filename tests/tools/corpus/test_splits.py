import hashlib

from corpus.splits import SHARES, digest, split_of

PATHS = [f"package/module_{number}.py" for number in range(4000)]


def test_digest_is_the_head_of_sha256() -> None:
    head = hashlib.sha256(b"sympy/core/add.py").hexdigest()[:12]
    assert digest("sympy/core/add.py") == int(head, 16) / 16**12


def test_every_split_gets_its_share_of_the_files() -> None:
    assert sum(SHARES.values()) == 1
    splits = [split_of(path) for path in PATHS]
    for split, share in SHARES.items():
        assert abs(splits.count(split) / len(PATHS) - share) < 0.03


def test_the_lowest_digests_are_held_out_first() -> None:
    by_digest = [split_of(path) for path in sorted(PATHS, key=digest)]
    assert sorted(by_digest, key=list(SHARES).index) == by_digest
