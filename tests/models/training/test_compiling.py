from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM, add_adapters, checkpoint_activations, compile_layers, train_later_heads
from wmtp_models.heads import KINDS

pytestmark = pytest.mark.slow
Make = Callable[..., PreTrainedModel]
PACKED = torch.cat([torch.arange(5), torch.arange(7)]).expand(2, 12)
MORE = {"gemma3_text": {"head_dim": 8}, "olmo2": {}, "phi3": {"pad_token_id": 0}}
COMPILED = torch.compile


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    """What other tests compiled is forgotten, and what these compile too."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each graph ran, in the order in which they were compiled: by a backend that runs them as they are."""
    found: Counter[int] = Counter()

    def backend(graph: torch.fx.GraphModule, _inputs: Any) -> Callable[..., Any]:
        number = len(found)
        found[number] = 0

        def run(*args: Any) -> Any:
            found[number] += 1
            return graph.forward(*args)

        return run

    monkeypatch.setattr(torch, "compile", lambda forward, **how: COMPILED(forward, backend=backend, **how))
    return found


def step(policy: MtpForCausalLM, input_ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses, and gradients by name; some tokens of every head have none, so that sparse rows have some to skip."""
    policy.zero_grad()
    ce = policy(input_ids, position_ids=PACKED).ce
    (ce * (torch.arange(ce.numel()).view_as(ce) % 5 < 2)).sum().backward()
    return ce.detach(), {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


def assert_close(found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        bound = 1e-5 * gradient.abs().max()
        assert (found[1][name] - gradient).abs().max() <= bound, name


def assert_compiled_once(policy: MtpForCausalLM, input_ids: Tensor) -> None:
    """Three steps are those of the policy as it was; the first compiles every layer whole, the others nothing."""
    names = [name for name, _ in policy.named_parameters()]
    expected = step(policy, input_ids)
    compile_layers(policy)
    assert [name for name, _ in policy.named_parameters()] == names
    assert_close(step(policy, input_ids), expected)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shift in (1, 2):  # other tokens, other documents
            assert_close(step(policy, input_ids), expected)
            step(policy, input_ids.roll(shift))
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_is_one_graph(
    kind: str, checkpointed: bool, make_causal_lm: Make, input_ids: Tensor, runs: Counter[int]
) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm(), 3, head_kind=kind).train()
    if checkpointed:
        checkpoint_activations(policy)
    assert_compiled_once(policy, input_ids)
    assert runs == {0: 5 * 3, 1: 5 * 2}  # 5 steps; 3 layers share one graph, 2 heads another


@pytest.mark.parametrize("train", ["heads", "lora"])
def test_frozen_trunks_and_adapters_too(
    train: str, make_causal_lm: Make, input_ids: Tensor, runs: Counter[int]
) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm(), 3).train()
    if train == "heads":
        train_later_heads(policy)
    else:
        add_adapters(policy, 2, 4)
    assert_compiled_once(policy, input_ids)
    assert sum(runs.values()) == 5 * 5


def test_every_family(family: str, make_causal_lm: Make, input_ids: Tensor, runs: Counter[int]) -> None:
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if family == "gpt2" else {}
    assert_compiled_once(MtpForCausalLM.wrap(make_causal_lm(family, **no_dropout), 3).train(), input_ids)
    assert sum(runs.values()) == 5 * 5


@pytest.mark.parametrize("family", MORE)
def test_some_families_more(family: str, make_causal_lm: Make, input_ids: Tensor, runs: Counter[int]) -> None:
    assert_compiled_once(MtpForCausalLM.wrap(make_causal_lm(family, **MORE[family]), 3).train(), input_ids)
    assert sum(runs.values()) == 5 * 5


@pytest.mark.parametrize("kind", ["layer", "sequential"])
def test_inductor_computes_the_same(kind: str, make_causal_lm: Make, input_ids: Tensor) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm(), 3, head_kind=kind).train()
    checkpoint_activations(policy)
    assert_compiled_once(policy, input_ids)


def test_evaluation_runs_as_it_did(make_causal_lm: Make, input_ids: Tensor, runs: Counter[int]) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm(), 3).eval()
    expected = policy(input_ids).ce
    compile_layers(policy)
    assert torch.equal(policy(input_ids).ce, expected)
    assert not runs


def test_routers_are_refused() -> None:
    sizes = {"num_local_experts": 4, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 32, "router_aux_loss_coef": 0.1}
    trunk = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **sizes, **heads))
    with pytest.raises(UserError, match=r"model\.compile: the routers' loss of MixtralForCausalLM .* to false$"):
        compile_layers(MtpForCausalLM.wrap(trunk, 2))


class ByValue(nn.Module):
    """A layer that looks at its numbers, which no graph can hold."""

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """Return what it was given, or its negative."""
        return hidden_states if hidden_states.sum().item() > 0 else -hidden_states


def test_a_layer_that_cannot_be_compiled_whole_is_named(make_causal_lm: Make, input_ids: Tensor) -> None:
    policy = MtpForCausalLM.wrap(make_causal_lm(), 2).train()
    policy.trunk.layers[1] = ByValue()
    compile_layers(policy)
    with pytest.raises(UserError, match=r"^model\.compile: ByValue cannot be compiled whole \(.*set model\.compile to"):
        policy(input_ids)


def test_a_machine_without_a_compiler_is_refused(make_causal_lm: Make) -> None:
    from torch._inductor import config

    no_compiler = config.patch({"cpp.cxx": (None, "no-such-compiler")})
    with (
        no_compiler,
        pytest.raises(UserError, match=r"needs a C\+\+ compiler on a CPU.*or set model\.compile to false"),
    ):
        compile_layers(MtpForCausalLM.wrap(make_causal_lm(), 2))


def test_a_device_without_triton_is_refused(make_causal_lm: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    with pytest.raises(UserError, match=r"needs Triton on this device: pip install triton, or set model\.compile to"):
        compile_layers(MtpForCausalLM.wrap(make_causal_lm(), 2))
