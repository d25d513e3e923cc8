"""The data order: a function of the seed and of the samples consumed, never of the number of processes."""

from functools import lru_cache

import numpy as np

PACKING_STREAM = 0  # epoch e uses stream e + 1, so that documents and rows are never shuffled alike


@lru_cache(maxsize=2)
def permutation(count: int, seed: int, stream: int) -> np.ndarray:
    """Return a permutation of range(count), int64 [count], read-only.

    It sorts the raw words of a Philox counter: NumPy promises these for every version, and promises the
    results of `Generator.permutation` for none.
    """
    words = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64)).random_raw(count)
    order = np.argsort(words, kind="stable")
    order.flags.writeable = False
    return order


def stream_rows(num_rows: int, seed: int, start: int, stop: int) -> np.ndarray:
    """Return the rows at positions [start, stop) of an endless stream: one permutation by (seed, epoch) after another.

    Returns:
        int64 `[stop - start]`, each in [0, num_rows).
    """
    positions = np.arange(start, stop)
    epochs, offsets = np.divmod(positions, num_rows)
    rows = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        rows[here] = permutation(num_rows, seed, int(epoch) + 1)[offsets[here]]
    return rows
