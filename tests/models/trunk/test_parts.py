from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, T5Config, T5ForConditionalGeneration

from wmtp_core import UserError
from wmtp_models.trunk.capture import layer_output
from wmtp_models.trunk.parts import trunk_parts

Make = Callable[..., PreTrainedModel]


def test_parts_are_the_ones_that_make_the_logits(family: str, make_causal_lm: Make, input_ids: torch.Tensor) -> None:
    causal_lm = make_causal_lm(family)
    parts = trunk_parts(causal_lm)
    assert len(parts.layers) == 3
    seen: list[torch.Tensor] = []
    parts.layers[-1].register_forward_hook(lambda _module, _args, output: seen.append(layer_output(output)))
    logits = causal_lm(input_ids, use_cache=False).logits
    assert torch.equal(parts.unembedding(parts.norm(seen[0])), logits)


TINY = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.mark.parametrize(
    ("model_type", "extra", "lack"),
    [
        ("bert", {"is_decoder": True}, "list of decoder layers"),
        ("openai-gpt", {}, "final norm"),
        ("gptj", {"rotary_dim": 8}, "bias"),
    ],
)
def test_refusal_names_what_is_lacking(model_type: str, extra: dict[str, object], lack: str) -> None:
    config = AutoConfig.for_model(model_type, **TINY, **extra, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    causal_lm = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match=rf"{type(causal_lm).__name__} cannot be wrapped.*{lack}"):
        trunk_parts(causal_lm)


def test_encoder_decoder_is_refused() -> None:
    model = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4))
    with pytest.raises(UserError, match="encoder-decoder"):
        trunk_parts(model)


def test_flash_attention_is_refused(make_causal_lm: Make) -> None:
    causal_lm = make_causal_lm()
    causal_lm.config._attn_implementation_internal = "flash_attention_2"  # as where its kernels are installed
    with pytest.raises(UserError, match=r"packed documents.*sdpa"):
        trunk_parts(causal_lm)


def test_missing_output_embedding_is_refused(make_causal_lm: Make) -> None:
    causal_lm = make_causal_lm()
    causal_lm.lm_head = nn.Identity()
    with pytest.raises(UserError, match="lacks an output embedding"):
        trunk_parts(causal_lm)
