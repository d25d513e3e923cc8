import torch

from benchmarks.problems import LossShape, make_loss_problem
from wmtp_core import dense_cross_entropy

CPU = torch.device("cpu")
SHAPE = LossShape(vocab_size=512, positions=256, hidden_size=64)


def test_same_seed_same_problem_and_another_seed_another() -> None:
    one, again = (make_loss_problem(SHAPE, CPU, torch.float32) for _ in range(2))
    other = make_loss_problem(SHAPE, CPU, torch.float32, seed=1)
    for name in ("hidden", "weight", "targets", "valid", "reference_ce"):
        assert torch.equal(getattr(one, name), getattr(again, name))
    assert not torch.equal(one.hidden, other.hidden)


def test_losses_differ_and_the_reference_agrees_in_part() -> None:
    problem = make_loss_problem(SHAPE, CPU, torch.float32)
    assert problem.hidden.shape == (256 * 4, 64)
    assert problem.targets.shape == problem.valid.shape == (2, 128, 4)
    ce = dense_cross_entropy((problem.hidden @ problem.weight.T).view(2, 128, 4, 512), problem.targets).detach()
    first = ce[:, :-1, 0].flatten()
    assert first.std() > 1
    correlation = torch.corrcoef(torch.stack([first, problem.reference_ce[:, 1:].flatten()]))[0, 1]
    assert 0.3 < correlation < 0.95
    means = [float(ce[..., h].sum() / problem.counts[h]) for h in range(4)]
    assert means == sorted(means)  # later heads know less


def test_a_pass_is_one_product_of_all_rows() -> None:
    assert SHAPE.pass_flop == 2 * (256 * 4) * 64 * 512
