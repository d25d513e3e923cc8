"""Models whose rows are cut into slices: the same losses and gradients, or a refusal. On one process (FoldedRows)."""

import pytest
import torch
from attention_stand_ins import FLASH, stand_ins
from families import build

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM, ReferenceModel, set_attention, share_rows
from wmtp_models.trunk.row_slices import FoldedRows

LENGTHS = (19, 13)  # longer than the windows of small models; the border is in the third of four slices
IDS = torch.randint(1, 64, (2, sum(LENGTHS)), generator=torch.Generator().manual_seed(2))
POSITIONS = torch.cat([torch.arange(length) for length in LENGTHS]).expand(2, -1)


@pytest.mark.parametrize("kind", ["layer", "sequential", "mlp", "linear"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma3_text"])
def test_slices_have_the_losses_and_gradients_of_whole_rows(family, kind):
    model = build(family)
    whole = MtpForCausalLM.wrap(model, 3, value_head=True, head_kind=kind)
    torch.nn.init.normal_(whole.value_head.value.weight)

    def run():
        whole.zero_grad()
        output = whole(IDS, position_ids=POSITIONS, predict=True)
        (output.ce.sum() + output.values.sum()).backward()
        return output, {name: p.grad.clone() for name, p in whole.named_parameters()}

    expected, gradients = run()
    share_rows(whole, FoldedRows(2))
    found, same_gradients = run()
    torch.testing.assert_close(found.ce, expected.ce, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.valid, expected.valid)
    assert torch.equal(found.predicted, expected.predicted)
    for name, gradient in gradients.items():
        assert (same_gradients[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-5, name


@pytest.mark.parametrize("attention", [FLASH, "flex_attention"])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_it_wraps_flash_and_flex_attention(family, attention):
    model = build(family)
    policy = MtpForCausalLM.wrap(model, 3)
    expected = policy(IDS, position_ids=POSITIONS).ce
    set_attention(policy, attention)
    share_rows(policy, FoldedRows(2))
    with stand_ins():
        found = policy(IDS, position_ids=POSITIONS).ce
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_reference_is_cut_alike_and_layers_are_computed_again_over_the_same_rows():
    reference = ReferenceModel(build("llama"))
    expected = reference.token_losses(IDS, POSITIONS)
    share_rows(reference, FoldedRows(2))
    torch.testing.assert_close(reference.token_losses(IDS, POSITIONS), expected, rtol=1e-4, atol=1e-4)

    policy = MtpForCausalLM.wrap(build("llama"), 3).train()
    share_rows(policy, FoldedRows(2))
    gradients = []
    for again in (False, True):
        if again:
            policy.gradient_checkpointing_enable({"use_reentrant": False})
        policy.zero_grad()
        policy(IDS, position_ids=POSITIONS).ce.sum().backward()
        gradients.append([p.grad.clone() for p in policy.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


REFUSED = [
    ("llama", 3, "a layer has 4 attention heads and 2 of keys and values: set it to a number that divides both"),
    ("gemma2", 2, "its attention is eager, and not transformers' sdpa, flex or flash"),
    ("mixtral", 2, "the loss of its routers looks at all tokens at once"),
    ("gpt_bigcode", 2, "a layer has 4 attention heads and 1 of keys and values"),
    ("qwen3_5_text", 2, "it has layers of linear_attention"),
]


@pytest.mark.parametrize(("family", "count", "problem"), REFUSED, ids=[family for family, *_ in REFUSED])
def test_what_cannot_be_cut_is_refused_in_one_line(family, count, problem):
    policy = MtpForCausalLM.wrap(build(family), 2, packing=family != "qwen3_5_text")
    policy.config.isolates_documents = True  # so that the layers are looked at
    with pytest.raises(UserError, match=f"sequence_parallel_size is {count}, and .*{problem}") as refusal:
        share_rows(policy, FoldedRows(count))
    assert "\n" not in str(refusal.value)


def test_a_model_whose_tokens_meet_outside_attention_is_refused():
    model = build("llama")
    mlp = model.model.layers[0].mlp
    forward = mlp.forward
    # As a convolution does.
    mlp.forward = lambda states: forward(states + torch.nn.functional.pad(states[:, :-1], (0, 0, 1, 0)))
    policy = MtpForCausalLM.wrap(model, 2, packing=False)
    policy.config.isolates_documents = True
    with pytest.raises(UserError, match="its tokens see each other elsewhere than in its attention"):
        share_rows(policy, FoldedRows(2))
