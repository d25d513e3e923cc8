"""Documents of random words, their tokenizer and a reference, made on the spot: nothing is downloaded."""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write a tokenizer whose words are w1, w2, …, one token each."""
    words = ["<eos>", *(f"w{i}" for i in range(1, vocab_size))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<eos>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(folder)


def write_corpus(file: Path, vocab_size: int, tokens: int, longest: int) -> None:
    """Write documents of uneven lengths up to `longest` tokens, whose words are as uneven as a text's (Zipf)."""
    draw, written = random.Random(0), 0
    weights = [1 / rank for rank in range(1, vocab_size)]
    with file.open("w") as lines:
        while written < tokens:
            length = draw.randint(longest // 8, longest)
            words = draw.choices(range(1, vocab_size), weights, k=length)
            lines.write(json.dumps({"text": " ".join(f"w{i}" for i in words)}) + "\n")
            written += length


def write_reference(folder: Path, vocab_size: int, positions: int) -> None:
    """Write a small reference model, untrained, with the tokenizer beside it."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    write_tokenizer(folder, vocab_size)
