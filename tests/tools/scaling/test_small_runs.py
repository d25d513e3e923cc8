import pytest
from scaling.check import Check
from scaling.engines import read_engines
from scaling.small_runs import checks

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
    for engine in read_engines():
        collectives = {0: 1}.get(engine.zero.stage, 2)
        held_twice_and_the_checkpoint = 3
        of_engine = [name for name in names if name.startswith(f"{engine.name}:")]
        assert len(of_engine) == held_twice_and_the_checkpoint + collectives


def test_a_formula_that_is_off_by_more_than_it_says_does_not_hold() -> None:
    assert Check("", 100, 101, 0.01).holds
    assert not Check("", 100, 102, 0.01).holds
    assert not Check("", 100, 98, 0.01).holds
    assert not Check("", 100, 101, 0).holds
