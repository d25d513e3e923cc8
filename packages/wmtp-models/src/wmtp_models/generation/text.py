"""Text from tokens as they come."""

from transformers import PreTrainedTokenizerFast


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
        self._told = len(self._text())

    def put(self, tokens: list[int]) -> str:
        """What these tokens add, as far as no later token can change it."""
        self._tokens += tokens
        # The bytes of an unfinished character decode as U+FFFD for now.
        return self._tell(self._text().rstrip("\N{REPLACEMENT CHARACTER}"))

    def end(self) -> str:
        """What was held back."""
        return self._tell(self._text())

    def _text(self) -> str:
        text: str = self._tokenizer.decode(self._tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def _tell(self, text: str) -> str:
        new = text[self._told :]
        self._told = max(self._told, len(text))
        return new
