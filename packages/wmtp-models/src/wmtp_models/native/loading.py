"""A policy whose heads are the modules that its source shipped."""

import sys
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from wmtp_core import UserError
from wmtp_models.heads.sequential import SequentialHeads, swap_inputs
from wmtp_models.hf_loading import from_pretrained_strict
from wmtp_models.native.blocks import NativeModules
from wmtp_models.native.layouts import LAYOUTS
from wmtp_models.native.source import ShippedModules, is_first_process
from wmtp_models.policy import MtpForCausalLM


def wrap_with_modules(
    causal_lm: PreTrainedModel,
    shipped: ShippedModules,
    horizon: int,
    value_head: bool,
    shared_module: bool,
    packing: bool = True,
) -> MtpForCausalLM:
    """Put heads with the weights of shipped modules beside the trunk that they were shipped with.

    Args:
        causal_lm: the trunk.
        shipped: its modules.
        horizon: any from 2 on with one module that is shared; else one more than there are modules.
        value_head: whether the policy is to have one.
        shared_module: one module is applied at every depth.
        packing: whether it is to be given rows of several documents.

    Raises:
        UserError: the modules cannot be heads, or not so; the message says why, or what to set.
    """
    modules, count = shipped.describe()
    if shared_module and count > 1:
        raise UserError(
            f"{shipped.source} ships {count} modules, one a depth: "
            f"set model.shared_module to false and model.horizon to {count + 1}"
        )
    if (horizon < 2) if shared_module else (horizon != count + 1):
        raise UserError(
            f"{shipped.source} ships {count} module{'s' * (count > 1)}, and model.horizon is {horizon}: "
            f"set model.horizon to {count + 1}" + (", or to more" if shared_module else "")
        )
    weights = _read(shipped, modules, count, causal_lm)
    kind = SequentialHeads.kind
    policy = MtpForCausalLM.wrap(causal_lm, horizon, value_head, kind, shared_module, asdict(modules), packing)
    heads: Any = policy.heads
    for depth, (layer, state) in enumerate(zip(heads.layers, weights, strict=True)):
        wanted, found = ({(name, weight.shape) for name, weight in of.items()} for of in (layer.state_dict(), state))
        if wanted != found:
            name = LAYOUTS[modules.layout].restore(min(wanted ^ found)[0], depth, len(policy.trunk.layers))
            raise shipped.cannot_use(f"{name} is missing, of another shape, or in no place that is known here")
        layer.load_state_dict(state, assign=True)
    return policy


def warn_unused(shipped: ShippedModules) -> None:
    """Say on standard error, once for all ranks, that shipped modules are not used."""
    if is_first_process():
        fix = "model.head_kind sequential keeps them" if shipped.layout else "their layout is not known here"
        print(
            f"warning: the sequential modules that {shipped.source} ships are not used, and will not be saved ({fix})",
            file=sys.stderr,
        )


def _read(
    shipped: ShippedModules, modules: NativeModules, count: int, causal_lm: PreTrainedModel
) -> list[dict[str, Tensor]]:
    """Return the weights of each module by the names of `SequentialModule`.

    Raises:
        UserError: one is missing or foreign, or a copy of the embedding or unembedding is none.
    """
    layout, layers = LAYOUTS[modules.layout], shipped.config.num_hidden_layers
    found: list[dict[str, Tensor]] = [{} for _ in range(count)]
    for name, tensor in shipped.read().items():
        places = [(depth, part) for depth in range(count) if (part := layout.rename(name, depth, layers))]
        if not places:
            raise shipped.cannot_use(f"{name} is in no place that is known here")
        depth, part = places[0]
        found[depth][part] = tensor
    trunk: dict[str, Any] = {
        "embedding": causal_lm.get_input_embeddings().weight,
        "unembedding": causal_lm.get_output_embeddings().weight,
    }
    blocks: list[dict[str, Tensor]] = []
    for state in found:
        for part in modules.copies:
            if not torch.equal(state.pop(part).to(trunk[part].dtype), trunk[part]):
                raise shipped.cannot_use(f"they have an {part} of their own, which is not the trunk's")
        blocks.append({name: state.pop(name) for name in list(state) if name.startswith("block.")})
    for state, block in zip(found, _convert_blocks(shipped, modules, blocks, causal_lm), strict=True):
        if layout.hidden_first:
            state["eh_proj.weight"] = swap_inputs(state["eh_proj.weight"])
        state.update({name: tensor.to(causal_lm.dtype) for name, tensor in state.items()})
        state |= block
    return found


def _convert_blocks(
    shipped: ShippedModules, modules: NativeModules, blocks: list[dict[str, Tensor]], causal_lm: PreTrainedModel
) -> list[dict[str, Tensor]]:
    """Return the weights of blocks as transformers has them, which stacks experts and renames.

    It does so as it loads a model of the family: here one of these layers alone, and a vocabulary of one token.
    """
    config = modules.block_config(causal_lm.config, len(blocks))
    config.vocab_size, config.pad_token_id, config.tie_word_embeddings = 1, None, False
    place = f"{causal_lm.base_model_prefix}.layers"
    state = {
        f"{place}.{index}.{name.removeprefix('block.')}": tensor
        for index, block in enumerate(blocks)
        for name, tensor in block.items()
    }
    own = {name: weight for name, weight in causal_lm.state_dict().items() if not name.startswith(f"{place}.")}
    state |= {name: torch.zeros_like(weight[:1] if weight.ndim > 1 else weight) for name, weight in own.items()}
    like: Any = from_pretrained_strict(
        type(causal_lm),
        None,
        shipped.source,
        "config.json",
        config=config,
        state_dict=state,
        dtype=causal_lm.dtype,
    )
    layers = like.get_submodule(place)
    return [{f"block.{name}": tensor for name, tensor in layer.state_dict().items()} for layer in layers]
