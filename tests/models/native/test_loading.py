import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from shipping_sources import LAYERS, SHIPPING
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import MtpModel

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM, generate, load_causal_lm, load_policy, load_wmtp
from wmtp_models.native.source import find_shipped

Ship = Callable[..., tuple[Path, dict[str, Tensor]]]
# What transformers' own loader of modules has no names for, in names that it has.
AS_GENERIC = {
    "qwen2": {
        "model.mtp_layers.": "mtp.layers.",
        "token_layernorm": "enorm",
        "hidden_layernorm": "hnorm",
        "input_proj": "eh_proj",
        "final_layernorm": "post_norm",
    },
    "mimo_v2_flash": {
        "model.mtp.layers.": "mtp.layers.",
        "pre_mlp_layernorm": "post_attention_layernorm",
        "final_layernorm": "post_norm",
    },
    "ernie4_5_moe": {
        "model.mtp_linear_proj.0.": "mtp.layers.0.eh_proj.",
        "model.mtp_emb_norm.0.": "mtp.layers.0.enorm.",
        "model.mtp_hidden_norm.0.": "mtp.layers.0.hnorm.",
        "model.mtp_block.0.": "mtp.layers.0.",
    },
}


def load(folder: Path, name: str, horizon: int | None = None) -> MtpForCausalLM:
    """The policy of a source: its one module at all depths, or each of several at its own."""
    count, packing = SHIPPING[name].modules, SHIPPING[name].packing
    horizon = horizon or count + 1
    return load_policy(folder, horizon, head_kind="sequential", shared_module=count == 1, packing=packing).eval()


def in_names_of_transformers(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a source under names that transformers' own loader of modules has."""
    renamed = {}
    for old, tensor in tensors.items():
        new = old
        for theirs, generic in AS_GENERIC.get(name, {}).items():
            new = new.replace(theirs, generic) if "mtp" in new else new
        if name == "qwen2" and "input_proj" in old:  # its projection reads the hidden state first
            tensor = torch.cat([tensor[:, 32:], tensor[:, :32]], dim=1)
        renamed[new] = tensor
    return renamed


def modules_of_transformers(folder: Path, name: str, tensors: dict[str, Tensor], place: Path) -> Any:
    """The modules as transformers loads them, told what it does not find out for these sizes and families."""
    family = SHIPPING[name]
    shutil.copytree(folder, place)
    tensors = in_names_of_transformers(name, tensors)
    if name == "ernie4_5_moe":
        tensors["mtp.layers.0.post_norm.weight"] = torch.ones(32)
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    main = AutoModelForCausalLM.from_pretrained(place).eval()
    later = "|".join(str(LAYERS + depth) for depth in range(family.modules))
    main._keys_to_ignore_on_load_unexpected = [r"^mtp\.", rf"^model\.layers\.({later})\."]
    main.config.num_mtp_layers = family.modules
    for kinds, ours in (("layer_types", family.attention), ("mlp_layer_types", family.mlp)):
        if own := getattr(main.config, kinds, None):
            setattr(main.config, f"mtp_{kinds}", list(ours[LAYERS:]) or own[-1:] * family.modules)
    modules = MtpModel.from_pretrained(main).eval()
    for layer in modules.layers:
        layer.use_post_norm = name != "ernie4_5_moe"  # whose modules have no norm at the end
    return modules


def warnings_in(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]


INDEXED = ("deepseek_v32", "glm_moe_dsa")  # whose attention transformers' own modules do not know


@pytest.mark.parametrize("name", [name for name in SHIPPING if name not in INDEXED])
def test_depths_are_those_of_transformers(name: str, ship: Ship, input_ids: Tensor, tmp_path: Path) -> None:
    folder, tensors = ship(name)
    states = load(folder, name)._forward_heads(input_ids, None)
    theirs = modules_of_transformers(folder, name, tensors, tmp_path / "theirs")
    length = input_ids.shape[1]
    assert len(states) == SHIPPING[name].modules + 1
    with torch.no_grad():
        for depth in range(1, len(states)):
            ahead = input_ids[:, depth:]
            positions = torch.arange(length - depth).expand_as(ahead)
            before = states[depth - 1][:, : length - depth]
            hidden = theirs.forward_layer(depth - 1, before, positions, None, input_ids=ahead)
            torch.testing.assert_close(states[depth][:, : length - depth], hidden, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", INDEXED)
def test_depths_are_those_of_a_decoder_of_one_layer(name: str, ship: Ship, input_ids: Tensor) -> None:
    """Of the family's own, with the module's block and norm for all its layers and its final norm."""
    policy = load(ship(name)[0], name)
    module = policy.heads.layers[0]
    decoder = copy.deepcopy(policy.causal_lm.base_model)
    decoder.config.num_hidden_layers = 1
    decoder.layers, decoder.norm = torch.nn.ModuleList([module.block]), module.post_norm
    final, hidden = policy._forward_heads(input_ids, None)
    embedded = policy.get_input_embeddings()(input_ids[:, 1:])
    both = torch.cat([module.enorm(embedded), module.hnorm(final[:, :-1])], dim=-1)
    expected = decoder(inputs_embeds=both @ module.eh_proj.weight.T, use_cache=False).last_hidden_state
    torch.testing.assert_close(hidden[:, :-1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mellum", "glm4_moe", "ernie4_5_moe"])
def test_a_saved_policy_is_the_same(name: str, ship: Ship, input_ids: Tensor, tmp_path: Path) -> None:
    policy = load(ship(name)[0], name)
    policy.save_pretrained(tmp_path / "saved")
    again = load_wmtp(tmp_path / "saved").eval()
    assert again.config.native == policy.config.native
    assert torch.equal(again.head_logits(input_ids), policy.head_logits(input_ids))
    assert again.state_dict().keys() == policy.state_dict().keys()


@pytest.mark.parametrize("name", ["mellum", "mellum dense", "glm4_moe", "deepseek_v3"])
def test_they_draft_and_the_text_is_the_trunks(name: str, ship: Ship, input_ids: Tensor) -> None:
    policy = load(ship(name)[0], name)
    prompts = [input_ids[0].tolist(), input_ids[1, :5].tolist()]
    drafted = generate(policy, prompts, 16)
    assert drafted.drafted[0] > 0
    for prompt, sequence in zip(prompts, drafted.sequences, strict=True):
        plain = policy.unwrap().generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False)
        assert sequence == plain[0].tolist()


def test_one_module_serves_every_depth(ship: Ship, input_ids: Tensor) -> None:
    policy = load(ship()[0], "mellum dense", horizon=4)
    assert policy.config.horizon == 4
    assert len(policy.heads.layers) == 1


def test_what_fits_no_horizon_says_which_to_set(ship: Ship) -> None:
    folder, _ = ship("glm4_moe")
    with pytest.raises(
        UserError, match=r"ships 2 modules, one a depth: set model.shared_module to false and model.horizon to 3"
    ):
        load_policy(folder, 3, head_kind="sequential")
    with pytest.raises(UserError, match=r"ships 2 modules, and model.horizon is 4: set model.horizon to 3"):
        load_policy(folder, 4, head_kind="sequential", shared_module=False)


def test_one_module_needs_a_second_head(ship: Ship) -> None:
    folder, _ = ship()
    with pytest.raises(UserError, match=r"set model.horizon to 2, or to more"):
        load_policy(folder, 1, head_kind="sequential")
    with pytest.raises(UserError, match=r"set model.horizon to 2$"):
        load_policy(folder, 3, head_kind="sequential", shared_module=False)


@pytest.mark.parametrize("name", ["mellum dense", "glm4_moe"])
def test_other_heads_leave_them_with_a_warning(
    name: str, ship: Ship, input_ids: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = ship(name)
    policy = load_policy(folder, 3)
    (line,) = warnings_in(capsys)
    assert line.startswith(f"warning: the sequential modules that {folder} ships are not used")
    assert policy.config.native is None
    plain = load_causal_lm(folder)
    assert torch.equal(plain.eval()(input_ids).logits, policy.eval().unwrap()(input_ids).logits)
    assert not warnings_in(capsys)


def test_modules_under_unknown_names_are_never_silent(ship: Ship, capsys: pytest.CaptureFixture[str]) -> None:
    folder, tensors = ship()
    tensors["mtp.other.weight"] = tensors.pop("mtp.fc.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    load_policy(folder, 2)
    assert "their layout is not known here" in warnings_in(capsys)[0]
    with pytest.raises(UserError, match="named in a way that is not known here"):
        load_policy(folder, 2, head_kind="sequential")


def test_a_module_with_an_embedding_of_its_own_is_refused(ship: Ship) -> None:
    folder, tensors = ship("deepseek_v3")
    tensors["model.layers.3.embed_tokens.weight"][0, 0] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="an embedding of their own, which is not the trunk's"):
        load_policy(folder, 2, head_kind="sequential")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"mtp.norm.weight": None}, r"mtp.norm.weight is missing, of another shape, or"),
        ({"mtp.norm.weight": torch.ones(7)}, r"mtp.norm.weight is missing, of another shape, or"),
        ({"mtp.fc.bias": torch.ones(32)}, r"mtp.fc.bias is missing, of another shape, or"),
        ({"mtp.other.weight": torch.ones(7)}, r"mtp.other.weight is in no place that is known here"),
        ({"mtp.layers.0.mlp.up_proj.weight": None}, r"lacks weights .*mlp.up_proj.weight"),
        ({"mtp.layers.0.mlp.other.weight": torch.ones(7)}, r"knows no place for: .*mlp.other.weight"),
    ],
)
def test_incomplete_and_foreign_modules_are_refused(changed: dict[str, Any], said: str, ship: Ship) -> None:
    folder, tensors = ship()
    tensors = {name: tensor for name, tensor in (tensors | changed).items() if tensor is not None}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=said) as caught:
        load_policy(folder, 2, head_kind="sequential")
    assert "\n" not in str(caught.value)


def test_a_source_in_several_files(ship: Ship, input_ids: Tensor, tmp_path: Path) -> None:
    folder, tensors = ship()
    whole = load(folder, "mellum dense")
    (folder / "model.safetensors").unlink()
    half = len(tensors) // 2
    files = {f"model-0000{n + 1}-of-00002.safetensors": n for n in range(2)}
    weight_map = {}
    for file, n in files.items():
        part = dict(sorted(tensors.items())[n * half : (n + 1) * half + n])
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert len(weight_map) == len(tensors)
    assert torch.equal(load(folder, "mellum dense").head_logits(input_ids), whole.head_logits(input_ids))


def test_a_plain_source_ships_nothing(make_causal_lm: Callable[..., Any], tmp_path: Path) -> None:
    make_causal_lm().save_pretrained(tmp_path)
    assert find_shipped(tmp_path) is None
