"""Count models against counting by hand."""

import math
from collections import Counter

import pytest
import torch

from wmtp_lab.experiment.count_models import PairTable, entropy

V = 12


def brute_force(pairs: list[tuple[int, int]]) -> list[list[float]]:
    """Return p(y | x) straight from its definition."""
    both, single = Counter(pairs), Counter(y for _, y in pairs)
    q = [(single[y] + len(single) / V) / (len(pairs) + len(single)) for y in range(V)]
    table = []
    for x in range(V):
        total, follow = sum(c for (a, _), c in both.items() if a == x), sum(a == x for a, _ in both)
        table.append([(both[x, y] + follow * q[y]) / (total + follow) if total else q[y] for y in range(V)])
    return table


@pytest.mark.parametrize("seed", range(20))
def test_a_table_is_that_of_counting_by_hand(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(V - 2, V, generator=generator) ** 8  # some follow often; the last two never come first
    first = torch.randint(V - 2, (1 + 7 * seed,), generator=generator)
    second = torch.multinomial(weights[first], 1, generator=generator)[:, 0]
    table = PairTable(first, second, V)
    expected = torch.tensor(brute_force(list(zip(first.tolist(), second.tolist(), strict=True))))
    everything = torch.cartesian_prod(torch.arange(V), torch.arange(V))
    found = table.probability(*everything.T).view(V, V)
    torch.testing.assert_close(found.float(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.sum(1), torch.ones(V, dtype=torch.float64))
    best = found.gather(1, table.predicted[:, None])[:, 0]
    torch.testing.assert_close(best, found.amax(1), rtol=1e-12, atol=0)


def test_entropy_is_the_least_cross_entropy_without_context() -> None:
    tokens = torch.tensor([0, 0, 0, 5, 5, 7])
    assert entropy(tokens) == pytest.approx(math.log(2) / 2 + math.log(3) / 3 + math.log(6) / 6)
    assert entropy(torch.tensor([3, 3])) == 0
