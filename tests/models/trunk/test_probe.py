from collections.abc import Callable

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from wmtp_core import UserError
from wmtp_models.trunk.parts import trunk_parts
from wmtp_models.trunk.probe import require_wrappable

Make = Callable[..., PreTrainedModel]
TINY = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def test_every_supported_family_passes(family: str, make_causal_lm: Make) -> None:
    causal_lm = make_causal_lm(family)
    assert require_wrappable(causal_lm)


@pytest.mark.parametrize(
    ("model_type", "extra", "reason"),
    [
        ("falcon", {"ffn_hidden_size": 48}, "documents packed into a row see each other"),
        ("bloom", {"n_layer": 2, "n_head": 4}, "documents packed into a row see each other"),
    ],
)
def test_losses_that_would_be_wrong_are_refused(model_type: str, extra: dict[str, object], reason: str) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **TINY, **extra, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    causal_lm = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match=rf"{type(causal_lm).__name__} cannot be wrapped.*{reason}"):
        require_wrappable(causal_lm)


def test_looking_changes_nothing(make_causal_lm: Make) -> None:
    causal_lm = make_causal_lm("gpt2", resid_pdrop=0.5, embd_pdrop=0.5).train()
    require_wrappable(causal_lm)
    assert causal_lm.training
    assert not trunk_parts(causal_lm).last_layer._forward_hooks
