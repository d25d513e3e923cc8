from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import wmtp_models.objective
from wmtp_core import GradientHint, GradientPlan, UniformWeighting, UserError, WeightingInputs, linear_cross_entropy
from wmtp_models import MtpForCausalLM, train_later_heads

Make = Callable[..., PreTrainedModel]
KINDS = ("layer", "sequential", "mlp", "linear")


@pytest.mark.parametrize("kind", KINDS)
def test_later_heads_and_the_value_head_learn_and_nothing_else(
    kind: str, family: str, make_causal_lm: Make, input_ids: Tensor
) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm(family), 3, value_head=True, head_kind=kind)
    train_later_heads(policy)
    learns = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    expected = {name for name, _ in policy.named_parameters() if name.startswith(("heads.", "value_head."))}
    assert learns == expected != set()
    output = policy(input_ids)
    (output.ce.sum() + output.values.sum()).backward()
    assert {name for name, parameter in policy.named_parameters() if parameter.grad is not None} == expected


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_no_graph_is_built_through_the_trunk(
    kind: str, checkpointing: bool, make_causal_lm: Make, input_ids: Tensor
) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm(), 3, head_kind=kind).train()
    train_later_heads(policy)
    if checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
    seen: list[bool] = []
    trunk = [*policy.causal_lm.model.layers, policy.get_input_embeddings()]  # the last layer gives on head 0's output
    for module in trunk:
        module.register_forward_hook(lambda _module, _inputs, output: seen.append(output.requires_grad))
    assert policy(input_ids).ce.requires_grad
    assert seen == [False] * (4 + 2 * (kind == "sequential"))  # whose modules embed a token each


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("frozen", [False, True])
def test_a_frozen_head_0_costs_no_gradient(
    frozen: bool, kind: str, make_causal_lm: Make, input_ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    arriving: dict[str, Tensor] = {}

    def spy(hidden: Tensor, weight: Tensor, targets: Tensor, hint: GradientHint, **how: Any) -> Tensor:
        ce = linear_cross_entropy(hidden, weight, targets, hint=hint, **how)
        arriving["hinted"] = hint.per_head
        ce.register_hook(lambda grad: arriving.update(real=grad.view(-1, 3)))
        return ce

    monkeypatch.setattr(wmtp_models.objective, "linear_cross_entropy", spy)
    policy = MtpForCausalLM.wrap(make_causal_lm(), 3, head_kind=kind)
    if frozen:
        train_later_heads(policy)
    plan = UniformWeighting().plan(WeightingInputs(torch.ones(2, 12, 3).bool(), 0, torch.arange(2)))
    policy(input_ids, plan=GradientPlan(plan, torch.ones(3))).ce.sum().backward()
    assert arriving["hinted"].tolist() == [0.0 if frozen else 1.0, 1, 1]
    assert arriving["real"][:, 0].any() == (not frozen)
    assert arriving["real"][:, 1:].all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_heads_learn_as_beside_a_trunk_that_learns(kind: str, make_causal_lm: Make, input_ids: Tensor) -> None:
    found: dict[bool, dict[str, Any]] = {}
    for frozen in (False, True):
        policy = MtpForCausalLM.wrap(make_causal_lm(), 3, head_kind=kind)
        if frozen:
            train_later_heads(policy)
        output = policy(input_ids)
        output.ce.sum().backward()
        found[frozen] = {
            "ce": output.ce,
            **{name: p.grad for name, p in policy.named_parameters() if p.grad is not None},
        }
    assert torch.equal(found[True]["ce"], found[False]["ce"])
    assert len(found[True]) > 2
    for name, gradient in found[True].items():
        torch.testing.assert_close(gradient, found[False][name], rtol=1e-4, atol=1e-5)


def test_head_0_alone_leaves_nothing_to_learn(make_causal_lm: Make) -> None:
    with pytest.raises(UserError, match=r"horizon 1 has none beside head 0: set model.horizon to 2 or more"):
        train_later_heads(MtpForCausalLM.wrap(make_causal_lm(), 1))
