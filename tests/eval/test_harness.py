"""PolicyLM against lm-eval's own model of the unwrapped policy, on the same requests and tasks."""

import random
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="wmtp-eval is not installed with its dependencies")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from wmtp_core import UserError
from wmtp_eval.harness import PolicyLM, run_tasks
from wmtp_models import generate

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "launch/lm_eval_tasks"


@pytest.fixture(scope="module")
def ours(policy, tokenizer):
    return PolicyLM(policy, tokenizer, batch_size=3)


@pytest.fixture(scope="module")
def theirs(policy, tokenizer):
    return HFLM(pretrained=policy.unwrap(), tokenizer=tokenizer, batch_size=1, device="cpu")


def requests(kind, arguments):
    return [Instance(kind, {}, given, number) for number, given in enumerate(arguments)]


def texts(count, most):
    draw = random.Random(0)
    return ["".join(draw.choice("abc xyz():\n") for _ in range(draw.randint(1, most))) for _ in range(count)]


def test_likelihoods_are_those_of_the_plain_model(ours, theirs, policy, tokenizer):
    contexts, answers = texts(7, 90), texts(7, 20)  # some longer than the 64 positions
    pairs = [*zip(contexts, answers, strict=True), ("", "a b"), ("space ", "behind")]
    asked = requests("loglikelihood", pairs)
    found, expected = ours.loglikelihood(asked), theirs.loglikelihood(asked)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-5)
    assert [right for _, right in found] == [right for _, right in expected]
    assert len({value for value, _ in found}) == len(pairs)


def test_a_greedy_answer_is_recognised_to_its_last_token(ours, theirs, policy):
    begun = generate(policy, [[5, 6, 7]], 4, speculate=False).sequences[0]
    wrong = [*begun[:-1], begun[-1] - 1]
    asked = [(("", ""), begun[:3], begun[3:]), (("", ""), wrong[:3], wrong[3:]), (("", ""), begun[:1], begun[3:])]
    found, expected = ours._loglikelihood_tokens(asked), theirs._loglikelihood_tokens(asked)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-5)
    assert [right for _, right in found] == [right for _, right in expected] == [True, False, False]


def test_whole_texts_are_scored_in_the_same_windows(ours, theirs):
    asked = requests("loglikelihood_rolling", [(text,) for text in ["a", *texts(5, 300)]])
    assert max(len(ours.tok_encode(request.args[0])) for request in asked) > 2 * ours.max_length
    assert ours.loglikelihood_rolling(asked) == pytest.approx(theirs.loglikelihood_rolling(asked), rel=1e-5)


def test_texts_are_those_of_the_plain_model(ours, theirs):
    options = [{"until": ["\n"], "max_gen_toks": 20}, {"until": [], "max_gen_toks": 9, "do_sample": False}]
    asked = requests("generate_until", [(text, options[n % 2]) for n, text in enumerate(texts(6, 120))])
    found = ours.generate_until(asked)
    assert found == theirs.generate_until(asked)
    assert len(set(found)) > 3


def test_sampled_texts_are_drawn_and_an_empty_context_has_a_beginning(ours):
    warm = {"until": [], "max_gen_toks": 20, "do_sample": True, "temperature": 2.0, "top_k": 50}
    asked = requests("generate_until", [("def f(", warm), ("def f(", warm), ("", warm)])
    assert len(set(ours.generate_until(asked))) == 3


def test_what_does_not_fit_into_the_context_is_refused(ours):
    with pytest.raises(UserError, match="asks for 64 new tokens, and the model's context is 64: lower max_gen_toks"):
        ours.generate_until(requests("generate_until", [("a", {"max_gen_toks": 64})]))
    with pytest.raises(UserError, match=r"answer has \d+ tokens, and the model's context is 64"):
        ours.loglikelihood(requests("loglikelihood", [("a", "x!" * 64)]))


def test_the_example_tasks_give_what_lm_evals_own_model_gets(ours, theirs, monkeypatch):
    monkeypatch.chdir(ROOT)
    names = ["python_lines", "python_bytes"]
    found = run_tasks(ours, names, TASKS, limit=None)
    manager = TaskManager(include_path=TASKS, include_defaults=False)
    expected = simple_evaluate(theirs, tasks=names, task_manager=manager, bootstrap_iters=0)["results"]
    assert found["python_lines/acc"] == expected["python_lines"]["acc,none"]
    assert found["python_lines/acc_norm"] == expected["python_lines"]["acc_norm,none"]
    assert found["python_bytes/bits_per_byte"] == pytest.approx(
        expected["python_bytes"]["bits_per_byte,none"], rel=1e-6
    )
    assert set(found) == {
        *("python_lines/acc", "python_lines/acc_stderr", "python_lines/acc_norm", "python_lines/acc_norm_stderr"),
        "python_bytes/bits_per_byte",
    }


def test_an_unknown_task_is_refused(ours):
    with pytest.raises(UserError, match=r"evaluation.tasks names 'python_line', which .*lm_eval_tasks does not have"):
        run_tasks(ours, ["python_line"], TASKS, limit=1)


def test_a_task_without_its_data_is_refused(ours, tmp_path):
    data = "dataset_path: json\ndataset_kwargs: {data_files: {test: missing.jsonl}}\n"
    (tmp_path / "broken.yaml").write_text("task: broken\n" + data)
    with pytest.raises(UserError, match=r"evaluation.tasks: Unable to find '.*missing.jsonl'; fix the task file's"):
        run_tasks(ours, ["broken"], tmp_path, limit=1)
