"""Multi-token heads on any Hugging Face decoder, reference models and the value head."""

from wmtp_models.heads import HeadLayers
from wmtp_models.loading import build_policy, load_causal_lm, load_policy, load_tokenizer
from wmtp_models.mtp import MtpConfig, MtpForCausalLM, MtpOutput
from wmtp_models.reference import ReferenceModel, require_same_tokenizer, weights_fingerprint
from wmtp_models.value_head import ValueHead

__all__ = [
    "HeadLayers",
    "MtpConfig",
    "MtpForCausalLM",
    "MtpOutput",
    "ReferenceModel",
    "ValueHead",
    "build_policy",
    "load_causal_lm",
    "load_policy",
    "load_tokenizer",
    "require_same_tokenizer",
    "weights_fingerprint",
]
