"""The rows of a batch on their way from prompts to texts."""

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from wmtp_core import UserError
from wmtp_models.policy import MtpForCausalLM


@dataclass
class GeneratedSequence:
    """One sequence on its way.

    Attributes:
        number: its place among the prompts.
        tokens: prompt and what follows it so far.
        prompt_length: how many of them are the prompt.
        limit: how many of them there may be.
        eos_token_ids: tokens that end it.
    """

    number: int
    tokens: list[int]
    prompt_length: int
    limit: int
    eos_token_ids: Collection[int]

    @property
    def remaining(self) -> int:
        """Return how many tokens may still come."""
        return self.limit - len(self.tokens)

    @property
    def ended(self) -> bool:
        """Return whether nothing follows any more. A prompt may hold an EOS, and its row begins all the same."""
        return self.remaining == 0 or (len(self.tokens) > self.prompt_length and self.tokens[-1] in self.eos_token_ids)

    def add(self, tokens: list[int]) -> list[int]:
        """Take in tokens up to the first EOS and the limit; returns those that were taken."""
        end = next((place for place, token in enumerate(tokens) if token in self.eos_token_ids), len(tokens))
        new = tokens[: min(end + 1, self.remaining)]
        self.tokens += new
        return new


def start_sequences(
    policy: MtpForCausalLM, prompts: Sequence[Sequence[int]], max_new_tokens: int, eos_token_ids: Collection[int]
) -> list[GeneratedSequence]:
    """Start a sequence for each prompt.

    Raises:
        UserError: a prompt that is empty, fills the context, or holds a token that the model does not know; no prompt;
            no token wanted.
    """
    if not prompts:
        raise UserError("there is no prompt: give at least one")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}: it must be at least 1")
    context, vocabulary = context_length(policy), policy.config.text.vocab_size
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"prompt {number} is empty: give it at least one token to go on from")
        if len(prompt) >= context:
            raise UserError(
                f"prompt {number} has {len(prompt)} tokens, and the model's context is {context}, "
                "with none left to generate: shorten the prompt"
            )
        if foreign := [token for token in prompt if not 0 <= token < vocabulary]:
            raise UserError(
                f"prompt {number} holds token {foreign[0]}, and the model's vocabulary is {vocabulary}: "
                "use the model's own tokenizer"
            )
    limits = [min(len(prompt) + max_new_tokens, context) for prompt in prompts]
    return [
        GeneratedSequence(number, list(prompt), len(prompt), limit, eos_token_ids)
        for number, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
    ]


def context_length(policy: MtpForCausalLM) -> int:
    """Return the most tokens that a sequence can have; without end where the trunk sets none."""
    length: int | None = getattr(policy.config.text, "max_position_embeddings", None)
    return sys.maxsize if length is None else length
