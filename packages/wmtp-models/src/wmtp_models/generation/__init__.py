"""Decoding with the heads as drafters, exact to the plain model."""

from wmtp_models.generation.decoding import generate
from wmtp_models.generation.result import Generation
from wmtp_models.generation.sampling import Sampling
from wmtp_models.generation.text import TextStream, encode_prompt, stop_tokens

__all__ = ["Generation", "Sampling", "TextStream", "encode_prompt", "generate", "stop_tokens"]
