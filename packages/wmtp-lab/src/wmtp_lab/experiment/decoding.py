"""How many drafts the plain model accepts after training: does dropping predictions hurt drafting?"""

import json
from pathlib import Path

import torch

from wmtp_core import UserError
from wmtp_lab.experiment.plan import DecodingPlan
from wmtp_models import Sampling, generate, load_tokenizer
from wmtp_models.loading import load_wmtp

GREEDY, SAMPLED, ON_TEXT = (f"decoding/{name}/accepted_per_forward" for name in ("greedy", "sampled", "text"))
ACCEPTED = {"greedy": GREEDY, "sampled": SAMPLED, "on the text": ON_TEXT}
"""Accepted drafts per verifying forward: of greedy and sampled continuations, and at every place of held-out text."""


def held_out_prompts(file: Path, tokenizer: Path, plan: DecodingPlan) -> list[list[int]]:
    """Return evenly spaced pieces of the text of a jsonl file, none across two documents.

    Raises:
        UserError: too little text for as many prompts.
    """
    encode = load_tokenizer(tokenizer)
    with file.open(encoding="utf-8") as lines:
        documents = [encode(json.loads(line)["text"], add_special_tokens=False)["input_ids"] for line in lines]
    length = plan.prompt_tokens
    pieces = [ids[end - length : end] for ids in documents for end in range(length, len(ids) + 1, length)]
    if len(pieces) < plan.prompts:
        raise UserError(
            f"decoding.prompts is {plan.prompts}, and {file} holds {len(pieces)} of {length} tokens; lower one of them"
        )
    return [pieces[i * len(pieces) // plan.prompts] for i in range(plan.prompts)]


def measure_decoding(model: Path, prompts: list[list[int]], new_tokens: int) -> dict[str, float]:
    """Return accepted drafts per verifying forward of a row, greedy and sampled, and each head's acceptance.

    A forward over the prompt drafts only, so it does not count. Greedy text of a small model soon repeats itself, which
    any head predicts; sampled text, at temperature 1, does not.

    Args:
        model: folder of a trained model of several heads.
        prompts: token ids.
        new_tokens: to each prompt, whatever they are: no token ends a text here.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policy = load_wmtp(model).to(device).eval()
    metrics: dict[str, float] = {}
    for name, sampling in ((GREEDY, None), (SAMPLED, Sampling(temperature=1.0, seed=0))):
        # Settling near-ties by the plain model would cost forwards and change a token in a thousand.
        result = generate(policy, prompts, new_tokens, sampling=sampling, exact=False)
        verifying = result.row_forwards - len(prompts)
        metrics[name] = sum(result.accepted) / verifying
        for head, share in enumerate(result.acceptance, start=1):
            metrics[f"{name}/head_{head}"] = share
    return metrics
