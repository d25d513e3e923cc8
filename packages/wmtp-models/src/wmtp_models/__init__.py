"""Multi-token heads on any Hugging Face decoder, reference models and the value head."""

from wmtp_models.config import MtpConfig
from wmtp_models.flop import flop_per_token
from wmtp_models.generation import Generation, Sampling, TextStream, encode_prompt, generate, stop_tokens
from wmtp_models.loading import build_policy, load_causal_lm, load_policy, load_tokenizer, load_wmtp
from wmtp_models.objective import Objective
from wmtp_models.output import MtpOutput
from wmtp_models.policy import MtpForCausalLM
from wmtp_models.reference import ReferenceModel, require_same_tokenizer, weights_fingerprint
from wmtp_models.splitting import share_rows
from wmtp_models.training.checkpointing import checkpoint_activations
from wmtp_models.training.compiling import compile_layers
from wmtp_models.training.freezing import train_later_heads
from wmtp_models.training.liger import apply_liger, require_liger
from wmtp_models.training.lora import add_adapters, merge_adapters
from wmtp_models.trunk.attention import choose_attention
from wmtp_models.trunk.attention_calls import set_attention
from wmtp_models.value_head import ValueHead

__all__ = [
    "Generation",
    "MtpConfig",
    "MtpForCausalLM",
    "MtpOutput",
    "Objective",
    "ReferenceModel",
    "Sampling",
    "TextStream",
    "ValueHead",
    "add_adapters",
    "apply_liger",
    "build_policy",
    "checkpoint_activations",
    "choose_attention",
    "compile_layers",
    "encode_prompt",
    "flop_per_token",
    "generate",
    "load_causal_lm",
    "load_policy",
    "load_tokenizer",
    "load_wmtp",
    "merge_adapters",
    "require_liger",
    "require_same_tokenizer",
    "set_attention",
    "share_rows",
    "stop_tokens",
    "train_later_heads",
    "weights_fingerprint",
]
