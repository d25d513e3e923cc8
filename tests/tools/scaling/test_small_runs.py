import pytest

from scaling.small_runs import STAGES, Check, checks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made() -> list[Check]:
    return list(checks())


def test_every_formula_agrees_with_what_really_runs(made: list[Check]) -> None:
    assert [check for check in made if not check.holds] == []


def test_everything_is_checked_that_a_cpu_can_show(made: list[Check]) -> None:
    names = [check.name for check in made]
    for part in ("parameters, tied", "activations of a layer", "checkpointed", "forward, FLOP", "selected", "loss op"):
        assert any(part in name for name in names), part
    for part in ("selection on a CPU", "selection's gather", "scores in float16", "final model"):
        assert any(part in name for name in names), part
    for stage in STAGES:
        of_stage = [name for name in names if f"stage {stage}, 2 processes" in name]
        assert len(of_stage) == (3 if stage == 0 else 4)  # what is held, the checkpoint, one or two collectives


def test_a_formula_that_is_off_by_more_than_it_says_does_not_hold() -> None:
    assert Check("", 100, 101, 0.01).holds
    assert not Check("", 100, 102, 0.01).holds
    assert not Check("", 100, 98, 0.01).holds
    assert not Check("", 100, 101, 0).holds
