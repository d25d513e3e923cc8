"""Which file belongs to which split, and how many of them a limited corpus takes."""

import hashlib

SHARES = {"validation": 0.10, "test": 0.05, "reference": 0.35, "train": 0.50}
FEWEST = 4  # files per split, however small the limit


def digest(path: str) -> float:
    """Return a number in [0, 1) that the path alone decides, evenly spread; splits and every order go by it."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:6]) / 2**48


def split_of(path: str) -> str:
    """Return the split of the file at this relative path; it never depends on the seed or on the other files."""
    position, end = digest(path), 0.0
    for split, share in SHARES.items():
        end += share
        if position < end:
            return split
    raise AssertionError("the shares sum to one")
