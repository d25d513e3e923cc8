import torch
from torch import nn

from wmtp_lab.measure.flop import count_flop


def test_products_are_counted_forward_and_backward() -> None:
    layer = nn.Linear(5, 7, bias=False)
    rows = torch.ones(3, 5)
    assert count_flop(lambda: layer(rows).sum().backward()) == 2 * 3 * 5 * 7 * 2  # the rows want no gradient


def test_compiled_products_are_counted() -> None:
    product = torch.compile(lambda a, b: (a @ b).sum(), backend="eager", fullgraph=True)
    assert count_flop(lambda: product(torch.ones(3, 5), torch.ones(5, 7))) == 2 * 3 * 5 * 7


def test_products_in_place_are_counted() -> None:
    total, a, b = torch.zeros(3, 7), torch.ones(3, 5), torch.ones(5, 7)
    assert count_flop(lambda: total.addmm_(a, b)) == 2 * 3 * 5 * 7


def test_attention_is_counted_as_its_two_products() -> None:
    states = torch.ones(2, 3, 4, 5)  # rows, heads, S, D
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    found = count_flop(lambda: nn.functional.scaled_dot_product_attention(states, states, states, attn_mask=mask))
    assert found == 2 * (2 * 3) * 4 * 4 * 5 * 2
