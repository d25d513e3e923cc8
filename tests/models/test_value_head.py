import torch

from wmtp_models.value_head import ValueHead


def test_values_are_zero_before_the_first_step_and_float32() -> None:
    hidden = torch.randn(2, 5, 8)
    for dtype in (torch.float32, torch.bfloat16):
        values = ValueHead(8).to(dtype)(hidden.to(dtype))
        assert values.shape == (2, 5)
        assert values.dtype == torch.float32
        assert not values.any()


def test_it_learns_a_nonlinear_value() -> None:
    torch.manual_seed(0)
    head = ValueHead(8)
    hidden = torch.randn(64, 4, 8)
    target = (hidden[..., 0] * hidden[..., 1]).sign()
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        (head(hidden) - target).square().mean().backward()
        optimizer.step()
    assert (head(hidden).sign() == target).float().mean() > 0.8  # a linear one stays near one half


def test_reset_draws_the_hidden_layer_anew() -> None:
    head = ValueHead(8)
    before = head.hidden.weight.clone()
    head.value.weight.data.fill_(3.0)
    head.reset_parameters()
    assert not torch.equal(head.hidden.weight, before)
    assert not head.value.weight.any()
