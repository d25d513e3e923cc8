"""Tokens of a text that is to be gone on from, text from tokens as they come, and where it ends."""

from transformers import PreTrainedTokenizerFast

from wmtp_models.policy import MtpForCausalLM


def encode_prompt(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Encode a prompt as the beginning of a document: after the tokenizer's BOS where it puts one, without an EOS.

    Nothing for an empty text.
    """
    tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [*bos_prefix(tokenizer), *tokens] if text else []


def bos_prefix(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return what stands before every document, in training as in decoding: the BOS of a tokenizer that puts one."""
    return [token for token in tokenizer("")["input_ids"][:1] if token == tokenizer.bos_token_id]


def stop_tokens(policy: MtpForCausalLM, tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """Return what ends a text: the tokenizer's EOS, as in training data, and what transformers' `generate` stops at."""
    ends = policy.causal_lm.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return {*ends, tokenizer.eos_token_id} - {None}


class TextStream:
    """The text of one sequence, whole characters only.

    Args:
        tokenizer: of the tokens.
        prompt: tokens whose text is not told again; they matter, since some tokenizers write a token otherwise at the
            start of a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prompt: list[int]) -> None:
        self._tokenizer = tokenizer
        self._tokens = list(prompt)
        self._settled = 0  # how many of them are told, and stand here for what follows to be decoded as it should
        self._told = len(self._text(self._tokens))

    def put(self, tokens: list[int]) -> str:
        """Return what these tokens add, as far as no later token can change it."""
        self._tokens += tokens
        text = self._text(self._tokens)
        # The bytes of an unfinished character decode as U+FFFD for now.
        new = self._tell(text.rstrip("\N{REPLACEMENT CHARACTER}"))
        if new and self._told == len(text):  # nothing is held back
            self._forget()
        return new

    def end(self) -> str:
        """Return what was held back."""
        return self._tell(self._text(self._tokens))

    def _forget(self) -> None:
        """Drop the tokens before those that came last, or each piece would take as long as all before it together."""
        self._tokens = self._tokens[self._settled :]
        self._settled, self._told = len(self._tokens), len(self._text(self._tokens))

    def _text(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _tell(self, text: str) -> str:
        new = text[self._told :]
        self._told = max(self._told, len(text))
        return new
