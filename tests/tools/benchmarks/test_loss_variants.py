import pytest
import torch

from benchmarks.loss_benchmark import inspect
from benchmarks.loss_variants import WatchedHint, loss_variants
from benchmarks.problems import LossShape, make_loss_problem

CPU = torch.device("cpu")


def test_there_are_ours_torchs_and_reasons_for_the_others() -> None:
    variants, skipped = loss_variants(CPU)
    assert list(variants)[:4] == ["naive", "fused, no selection", "ours, rho1", "ours, rho1, no hint"]
    peers = {"torch F.linear_cross_entropy", "Liger-Kernel", "cut-cross-entropy"}
    assert {name for name, variant in variants.items() if variant.is_peer} | skipped.keys() == peers
    assert skipped["Liger-Kernel"] in (
        "liger-kernel is not installed",
        "liger-kernel needs CUDA, and this run is on cpu",
    )


def test_what_a_hint_said_is_compared_with_what_was_right() -> None:
    said = {0: [1.0, 0.0], 1: [1.0, 1.0], 2: [0.0, 1.0], 3: [0.0, 0.0]}
    watched = WatchedHint(lambda positions, ce: torch.tensor([said[int(p)] for p in positions]))
    for positions in ([1, 3], [0, 2]):
        watched(torch.tensor(positions), torch.zeros(2, 2))
    weights = torch.tensor([[[1.0, 0.5], [1.0, 1.0]], [[0.0, 0.0], [0.0, 1.0]]])  # [B=2, S=2, H=2]
    valid = torch.ones(2, 2, 2, dtype=torch.bool)
    valid[1, 1, 1] = False
    # Head 1 of position 0 was missed; position 2 was taken for head 1; position 3 has no target there.
    assert watched.share_wrong(weights, valid) == pytest.approx(2 / 7)


def test_flop_are_counted_in_passes() -> None:
    shape = LossShape(vocab_size=512, positions=64, hidden_size=16)
    problem = make_loss_problem(shape, CPU, torch.float32)
    variants, _ = loss_variants(CPU)
    counted = {name: inspect(variant, problem) for name, variant in variants.items() if not variant.is_peer}
    rows, valid = problem.targets.numel(), int(problem.valid.sum())
    kept = int(variants["naive"](problem).weights.sum())
    per_row = 2 * 512 * 16
    assert counted == {
        "naive": (3 * rows * per_row, None),
        "fused, no selection": (3 * valid * per_row, 0.0),
        # One chunk: the hint sees all there is to see.
        "ours, rho1": ((valid + 2 * kept) * per_row, 0.0),
        "ours, rho1, no hint": ((valid + 3 * kept) * per_row, None),
    }
