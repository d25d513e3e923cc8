"""Completions of prompts, decoded by all heads."""

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerFast

from wmtp_models import MtpForCausalLM, Sampling, generate, stop_tokens


def complete(
    policy: MtpForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    stops: Sequence[str],
    sampling: Sampling | None,
    batch_size: int,
) -> list[str]:
    """Return the completion of each prompt, decoded by all heads, cut at the first stop.

    Args:
        prompts: token ids, each shorter than the context.
        max_new_tokens: for each.
        stops: strings that end a text; they are cut off.
        sampling: how to draw, with a seed of its own for each batch; None is greedy.
        batch_size: how many prompts are decoded together.
    """
    ends = stop_tokens(policy, tokenizer)
    texts = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        draw = None if sampling is None else replace(sampling, seed=sampling.seed + start)
        sequences = generate(policy, batch, max_new_tokens, eos_token_ids=ends, sampling=draw).sequences
        new = [sequence[len(prompt) :] for sequence, prompt in zip(sequences, batch, strict=True)]
        texts += tokenizer.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))] for text in texts]
