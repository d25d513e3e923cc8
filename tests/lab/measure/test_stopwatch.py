import torch

from wmtp_lab.measure.stopwatch import clocks, interleaved, ratios, spread


def test_variants_take_turns_after_a_warm_up() -> None:
    calls: list[str] = []
    operations = {name: lambda name=name: calls.append(name) for name in "AB"}
    samples = interleaved(operations, 3, torch.device("cpu"))
    assert calls == ["A", "B"] * 4
    assert {name: len(taken) for name, taken in samples.items()} == {"A": 3, "B": 3}
    assert clocks(samples["A"]) == ["cpu", "wall"]


def test_ratios_are_of_the_same_round() -> None:
    mine = [{"cpu": 1.0}, {"cpu": 20.0}, {"cpu": 3.0}]
    first = [{"cpu": 2.0}, {"cpu": 10.0}, {"cpu": 3.0}]
    assert ratios(mine, first, "cpu") == (1.0, 0.5, 2.0)


def test_spread_is_median_lowest_highest() -> None:
    assert spread([3.0, 1.0, 2.0, 10.0]) == (2.5, 1.0, 10.0)
