"""Liger's kernels, by a stand-in of the same signature: nothing of Liger runs without an accelerator."""

import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama import modeling_llama

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM, apply_liger, require_liger

Make = Callable[..., PreTrainedModel]
ROTARY = modeling_llama.apply_rotary_pos_emb


class StandIn:
    """`liger_kernel.transformers` as far as it is used: what it was called with, and what it replaced."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.replaced: list[nn.Module] = []
        self.ran: list[nn.Module] = []
        self.rotary = 0

    def replace(self, module: nn.Module) -> None:
        forward = type(module).forward

        def kernel(x: Tensor) -> Tensor:
            self.ran.append(module)
            return forward(module, x)

        self.replaced.append(module)
        module.__dict__["forward"] = kernel

    def llama(
        self,
        rope: bool = True,
        cross_entropy: bool = False,
        fused_linear_cross_entropy: bool = True,
        rms_norm: bool = True,
        swiglu: bool = True,
        model: Any = None,
    ) -> None:
        def rotary(*args: Any, **how: Any) -> Any:
            self.rotary += 1
            return ROTARY(*args, **how)

        self.calls.append({"cross_entropy": cross_entropy, "fused": fused_linear_cross_entropy, "model": model})
        modeling_llama.apply_rotary_pos_emb = rotary
        modeling_llama.LlamaRMSNorm = type("LigerRMSNorm", (nn.Module,), {})
        modeling_llama.LlamaMLP = type("LigerSwiGLUMLP", (nn.Module,), {})
        self.replace(model.model.norm)
        for layer in model.model.layers:
            for module in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm):
                self.replace(module)


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """Installed for Llama alone, beside an accelerator."""
    stand_in = StandIn()
    families = {"llama": stand_in.llama}
    names = ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.monkey_patch")
    package, transformers, patches = (ModuleType(name) for name in names)
    patches.MODEL_TYPE_TO_APPLY_LIGER_FN = families
    transformers._apply_liger_kernel_to_instance = lambda model, **how: families[model.config.model_type](
        model=model, **how
    )
    package.__spec__ = object()
    for name, module in zip(names, (package, transformers, patches), strict=True):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    yield stand_in
    modeling_llama.apply_rotary_pos_emb = ROTARY


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", ["layer", "sequential", "mlp"])
def test_norms_and_mlps_of_trunk_and_heads_are_replaced(
    kind: str, shared: bool, make_causal_lm: Make, input_ids: Tensor, liger: StandIn
) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm(), 3, head_kind=kind, shared_module=shared)
    names, expected = list(policy.state_dict()), policy(input_ids).ce
    own = modeling_llama.LlamaRMSNorm, modeling_llama.LlamaMLP
    meant = {module for module in policy.modules() if isinstance(module, own)}
    apply_liger(policy)
    assert set(liger.replaced) == meant
    assert len(meant) == 3 * 3 + 1 + {"layer": 2 * 3, "sequential": (2 - shared) * 6, "mlp": 0}[kind]
    assert all(call == {"cross_entropy": False, "fused": False, "model": policy.causal_lm} for call in liger.calls)
    assert list(policy.state_dict()) == names
    assert (modeling_llama.LlamaRMSNorm, modeling_llama.LlamaMLP) == own
    assert torch.equal(policy(input_ids).ce, expected)
    assert set(liger.ran) == meant
    assert liger.rotary == (3 if kind == "mlp" else 5)


def test_a_family_without_kernels_is_refused(make_causal_lm: Make, liger: StandIn) -> None:
    with pytest.raises(UserError, match=r"liger-kernel has no kernels for gpt2: set model\.liger to false"):
        require_liger(MtpForCausalLM.wrap(make_causal_lm("gpt2"), 2))


def test_another_activation_is_refused(make_causal_lm: Make, liger: StandIn) -> None:
    with pytest.raises(UserError, match=r"its MLP has the activation silu, and the model's is gelu: set model\.liger"):
        apply_liger(MtpForCausalLM.wrap(make_causal_lm(hidden_act="gelu"), 2))
    assert not liger.calls


def test_no_accelerator_is_refused(make_causal_lm: Make, liger: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"need an accelerator, and torch sees none here: set model\.liger to false"):
        require_liger(MtpForCausalLM.wrap(make_causal_lm(), 2))


def test_a_missing_package_is_refused(make_causal_lm: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package liger-kernel: pip install liger-kernel, or set model\.lig"):
        require_liger(MtpForCausalLM.wrap(make_causal_lm(), 2))
