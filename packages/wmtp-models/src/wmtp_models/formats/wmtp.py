"""Our own format, all of a model: `MtpForCausalLM.from_pretrained` loads it."""

from pathlib import Path

from wmtp_models.formats.roundtrip import head_logits, require_equal, require_same_generation, require_same_weights
from wmtp_models.policy import MtpForCausalLM


def unsupported_parts(policy: MtpForCausalLM) -> list[str]:
    """Return nothing: all of a model is kept."""
    return []


def commands(policy: MtpForCausalLM) -> dict[str, str]:
    """Return how it is decoded: no server reads it."""
    return {"WMTP": "wmtp generate --model FOLDER --prompt TEXT"}


def save(policy: MtpForCausalLM, folder: Path) -> None:
    """Write it."""
    policy.save_pretrained(folder)


def check(policy: MtpForCausalLM, folder: Path) -> str:
    """Read it back and compare; says what was equal.

    Raises:
        UserError: something is not.
    """
    again = MtpForCausalLM.from_pretrained(folder, dtype="auto").eval()
    expected = dict(policy.state_dict())
    require_same_weights(expected, dict(again.state_dict()), folder)
    require_same_generation(policy.causal_lm.generation_config, again.causal_lm.generation_config, folder)
    require_equal(head_logits(policy), head_logits(again), f"the logits of {folder}")
    return f"{len(expected)} weights and the logits of {policy.config.horizon} heads are equal to the bit"
