"""How a family scales or soft-caps its logits, by what its configuration calls that."""

from transformers import PreTrainedConfig

from wmtp_core import LogitTransform

_SCALES = ("logit_scale", "lm_head_multiplier")
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


def find_logit_transform(config: PreTrainedConfig) -> LogitTransform:
    """Return what the settings of a model say; `require_wrappable` holds it against the model's own logits."""
    text = config.get_text_config()
    scale = next((float(value) for name in _SCALES if (value := getattr(text, name, None)) is not None), 1.0)
    if (scaling := getattr(text, "logits_scaling", None)) is not None:
        scale = scaling if text.model_type.startswith("hyperclovax") else 1 / scaling  # Granite divides
    softcap = next((float(value) for name in _SOFTCAPS if (value := getattr(text, name, None)) is not None), None)
    return LogitTransform(scale, softcap)
