"""The sizes of a training step, and the model and tokens of those sizes."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel


@dataclass(frozen=True)
class StepShape:
    """A batch and a small Llama with tied embeddings."""

    vocab_size: int
    batch: int
    length: int
    hidden_size: int
    layers: int
    horizon: int = 4

    @property
    def pass_flop(self) -> int:
        """U: floating-point operations of one product of all rows of all heads with the unembedding."""
        return 2 * self.batch * self.length * self.horizon * self.hidden_size * self.vocab_size


def small_llama(shape: StepShape) -> PreTrainedModel:
    """Return a new Llama, drawn from torch's generator."""
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.hidden_size * 11 // 4,
        num_hidden_layers=shape.layers,
        num_attention_heads=max(1, shape.hidden_size // 64),
        max_position_embeddings=shape.length,
        tie_word_embeddings=True,
        initializer_range=shape.hidden_size**-0.5,  # losses that differ from token to token, before any training
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


def frequent_and_rare_tokens(shape: StepShape) -> Tensor:
    """Return int64 `[B, S]`, as uneven as in text (Zipf), drawn from torch's generator."""
    frequencies = 1 / torch.arange(1, shape.vocab_size + 1)
    return torch.multinomial(frequencies, shape.batch * shape.length, replacement=True).view(shape.batch, shape.length)
