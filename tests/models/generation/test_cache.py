"""Every row keeps its own prefix: held against plain lists over random rounds."""

import random

import pytest
import torch

from wmtp_models.generation.cache import RaggedCache


def feed(cache: RaggedCache, tokens: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Put tokens into two layers of the cache, as keys of their own number and values of its negative; pads are -1."""
    width = max(map(len, tokens))
    lengths = torch.tensor([len(row) for row in tokens])
    layout = cache.extend(lengths, width)
    padded = torch.tensor([[-1] * (width - len(row)) + row for row in tokens]).float()
    states = padded[:, None, :, None].expand(-1, 2, -1, 3)  # [B, heads, width, D]
    for layer in range(2):
        cache.layers.update(states, -states, layer)
    return layout


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("uneven", [True, False])
def test_rows_hold_what_they_kept(seed: int, uneven: bool) -> None:
    draw = random.Random(seed)
    numbers = iter(range(10_000))
    cache = RaggedCache(4, torch.device("cpu"))
    expected: list[list[int]] = [[] for _ in range(4)]
    fresh = [[next(numbers) for _ in range(draw.randint(1, 6) if uneven else 3)] for _ in range(4)]
    for _ in range(12):
        mask, positions = feed(cache, fresh)
        expected = [row + new for row, new in zip(expected, fresh, strict=True)]
        total = max(map(len, expected)) if uneven else len(expected[0])
        assert mask.shape[1] >= total
        for row, tokens, place, new in zip(mask, expected, positions, fresh, strict=True):
            assert row.tolist() == [False] * (len(row) - len(tokens)) + [True] * len(tokens)
            assert place[len(place) - len(new) :].tolist() == list(range(len(tokens) - len(new), len(tokens)))
            assert not place[: len(place) - len(new)].any()
        survivors = [b for b in range(len(expected)) if len(expected) == 1 or draw.random() > 0.1] or [0]
        together = draw.randint(0, min(map(len, fresh)) - 1)
        dropped = [draw.randint(0, len(fresh[b]) - 1) if uneven else together for b in survivors]
        cache.keep(torch.tensor(survivors), torch.tensor(dropped))
        expected = [expected[b][: len(expected[b]) - less] for b, less in zip(survivors, dropped, strict=True)]
        width = max(map(len, expected))
        for layer in cache.layers.layers:
            assert layer.keys.shape == layer.values.shape == (len(expected), 2, width, 3)
            for keys, values, tokens in zip(layer.keys, layer.values, expected, strict=True):
                held = torch.tensor(tokens).float()[None, :, None].expand(2, -1, 3)
                assert torch.equal(keys[:, width - len(tokens) :], held)
                assert torch.equal(values[:, width - len(tokens) :], -held)
        assert cache.lengths.tolist() == [len(tokens) for tokens in expected]
        fresh = [[next(numbers) for _ in range(4)] for _ in expected]


def test_nothing_is_copied_where_all_rows_stay_together() -> None:
    """Every round of a single row, and of plain decoding."""
    cache = RaggedCache(2, torch.device("cpu"))
    feed(cache, [[1, 2, 3], [4, 5, 6]])
    before = [layer.keys.data_ptr() for layer in cache.layers.layers]
    cache.keep(torch.tensor([0, 1]), torch.tensor([1, 1]))
    assert [layer.keys.data_ptr() for layer in cache.layers.layers] == before
    assert cache.layers.get_seq_length() == 2


def test_nothing_of_a_hole_is_infinite() -> None:
    """What a mask hides is still multiplied by 0."""
    cache = RaggedCache(2, torch.device("cpu"))
    feed(cache, [[1], [1, 2, 3]])
    feed(cache, [[4, 5, 6], [7, 8, 9]])
    cache.keep(torch.tensor([0, 1]), torch.tensor([2, 0]))
    assert all(layer.keys.isfinite().all() for layer in cache.layers.layers)
