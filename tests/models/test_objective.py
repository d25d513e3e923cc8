"""What heads learn, through a whole policy: by the definitions on dense logits, and what their losses may move."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from wmtp_core import GradientPlan, ReachWeighting, Rho1Weighting, UniformWeighting, WeightingInputs, mtp_targets
from wmtp_models import MtpForCausalLM, Objective, checkpoint_activations, train_later_heads

Make = Callable[..., PreTrainedModel]
HORIZON = 4
TEXT = Objective()
KINDS = ["layer", "sequential", "mlp", "linear"]
POSITIONS = torch.cat([torch.arange(5), torch.arange(7)]).expand(2, 12)  # two documents a row
EVERY_OBJECTIVE = [Objective(detach_heads=True)] + [
    Objective(kind, share, detach)
    for kind, share in (("forward-kl", 0.0), ("reverse-kl", 0.25), ("total-variation", 0.0))
    for detach in (False, True)
]


@pytest.fixture
def make_policy(make_causal_lm: Make) -> Callable[..., MtpForCausalLM]:
    """A policy whose heads are far from where they start."""

    def make(kind: str, objective: Objective = TEXT, family: str = "llama", **overrides: Any) -> MtpForCausalLM:
        policy = MtpForCausalLM.wrap(make_causal_lm(family, **overrides), HORIZON, head_kind=kind)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in policy.heads.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        policy.objective = objective
        return policy

    return make


def dense_losses(policy: MtpForCausalLM, input_ids: Tensor, objective: Objective) -> Tensor:
    """Losses `[B, S, H]` from all logits: head h at t against head 0 at t+h, which is a constant."""
    log_p = policy.head_logits(input_ids, position_ids=POSITIONS).log_softmax(-1)  # [B, S, H, V]
    documents = (POSITIONS == 0).cumsum(dim=1)
    targets, valid = mtp_targets(input_ids, HORIZON, document_ids=documents)
    losses = -log_p.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    if objective.divergence is not None:
        for h in range(1, HORIZON):
            p, q = log_p[:, :, 0].detach().roll(-h, dims=1).exp(), log_p[:, :, h].exp()
            apart = {
                "forward-kl": (p * (p / q).log()).sum(-1),
                "reverse-kl": (q * (q / p).log()).sum(-1),
                "total-variation": 1 - torch.minimum(p, q).sum(-1),
            }[objective.divergence]
            share = objective.cross_entropy
            losses = losses.clone()
            losses[..., h] = (1 - share) * apart + share * losses[..., h]
    return losses.where(valid, 0)


def gradients(policy: MtpForCausalLM, loss: Tensor) -> dict[str, Tensor]:
    policy.zero_grad()
    loss.backward()
    named = dict(policy.named_parameters())
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in named.items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], names: Callable[[str], bool]) -> None:
    chosen = [name for name in found if names(name)]
    assert chosen
    for name in chosen:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


def is_head(name: str) -> bool:
    return name.startswith("heads.")


def is_trunk(name: str) -> bool:
    return name.startswith("causal_lm.")


@pytest.mark.parametrize("objective", EVERY_OBJECTIVE)
@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_the_definition(
    kind: str, objective: Objective, make_policy: Callable[..., MtpForCausalLM], input_ids: Tensor
) -> None:
    """Where heads are detached, the trunk learns what it would learn from head 0 alone."""
    policy = make_policy(kind, objective)
    weights = torch.rand(2, 12, HORIZON, generator=torch.Generator().manual_seed(2))
    output = policy(input_ids, position_ids=POSITIONS)
    found = gradients(policy, (weights * output.losses).sum())
    ce = output.ce.detach()

    policy.objective = Objective()
    expected_losses = dense_losses(policy, input_ids, objective)
    torch.testing.assert_close(output.losses, expected_losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ce, policy(input_ids, position_ids=POSITIONS).ce, rtol=1e-5, atol=1e-5)
    expected = gradients(policy, (weights * expected_losses).sum())
    assert_same(found, expected, is_head)
    if objective.detach_heads:
        expected = gradients(policy, (weights * dense_losses(policy, input_ids, objective))[..., 0].sum())
    assert_same(found, expected, is_trunk)


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
@pytest.mark.parametrize("kind", ["layer", "sequential"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_detached_heads_of_other_trunks_move_nothing_else(
    kind: str, family: str, checkpointed: bool, make_policy: Callable[..., MtpForCausalLM], input_ids: Tensor
) -> None:
    """Tied embeddings too: what heads read of them, and the unembedding that they share."""
    policy = make_policy(kind, Objective("forward-kl", detach_heads=True), family, tie_word_embeddings=True)
    policy.train()
    if checkpointed:
        checkpoint_activations(policy)
    weights = torch.ones(2, 12, HORIZON)
    weights[..., 0] = 0
    found = gradients(policy, (weights * policy(input_ids, position_ids=POSITIONS).losses).sum())
    assert all((gradient == 0).all() for name, gradient in found.items() if is_trunk(name))
    assert all((gradient != 0).any() for name, gradient in found.items() if is_head(name) and "weight" in name)
    assert all(parameter.requires_grad for parameter in policy.parameters())


@pytest.mark.parametrize("objective", [Objective(), *EVERY_OBJECTIVE])
@pytest.mark.parametrize("rule", [UniformWeighting(), Rho1Weighting(0.6), ReachWeighting()])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_plan_changes_no_gradient(
    objective: Objective, rule: Any, frozen: bool, make_policy: Callable[..., MtpForCausalLM], input_ids: Tensor
) -> None:
    policy = make_policy("sequential", objective)
    if frozen:
        train_later_heads(policy)
    documents = (POSITIONS == 0).cumsum(dim=1)
    valid = mtp_targets(input_ids, HORIZON, document_ids=documents)[1]
    reference_ce = torch.rand(2, 12, generator=torch.Generator().manual_seed(3)) * 5
    plan = rule.plan(WeightingInputs(valid=valid, step=0, row_ids=torch.arange(2), reference_ce=reference_ce))
    per_head = torch.tensor([1.0, 0.5, 0.25, 0.125])
    results = []
    for given in (None, GradientPlan(plan, per_head)):
        output = policy(input_ids, position_ids=POSITIONS, plan=given)
        weights = plan.weights(output.ce.detach()) * per_head
        results.append((output.losses.detach(), gradients(policy, (weights * output.losses).sum())))
    assert torch.equal(results[0][0], results[1][0])
    assert_same(results[1][1], results[0][1], lambda name: True)


def test_a_frozen_trunk_and_detached_heads_give_heads_the_same(
    make_policy: Callable[..., MtpForCausalLM], input_ids: Tensor
) -> None:
    policy = make_policy("sequential", Objective("forward-kl", detach_heads=True))
    detached = gradients(policy, policy(input_ids, position_ids=POSITIONS).losses.sum())
    policy.objective = Objective("forward-kl")
    train_later_heads(policy)
    frozen = gradients(policy, policy(input_ids, position_ids=POSITIONS).losses[..., 1:].sum())
    assert all(torch.equal(frozen[name], detached[name]) for name in frozen if is_head(name))


@pytest.mark.parametrize("kind", KINDS)
def test_overlap_is_that_of_the_distributions(
    kind: str, make_policy: Callable[..., MtpForCausalLM], input_ids: Tensor
) -> None:
    policy = make_policy(kind).eval()
    with torch.no_grad():
        output = policy(input_ids, position_ids=POSITIONS, predict=True)
        p = policy.head_logits(input_ids, position_ids=POSITIONS).softmax(-1)
    assert (output.overlap[..., 0] == 1).all()
    for b, t, h in output.valid[..., 1:].nonzero().tolist():
        expected = torch.minimum(p[b, t, h + 1], p[b, t + h + 1, 0]).sum()
        torch.testing.assert_close(output.overlap[b, t, h + 1], expected, rtol=1e-5, atol=1e-6)


def test_one_head_alone_learns_the_text(make_causal_lm: Make, input_ids: Tensor) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm(), 1)
    expected = policy(input_ids).ce
    policy.objective = Objective("forward-kl", detach_heads=True)
    output = policy(input_ids)
    assert output.distilled is None
    assert torch.equal(output.losses, expected)
