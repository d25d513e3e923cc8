"""Every causal LM of the installed transformers, shrunken: which can have heads, on which rows, or why it cannot.

`python tests/models/families.py` writes docs/families.md.
"""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from attention_stand_ins import FLASH, stand_ins
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from wmtp_core import UserError
from wmtp_models import MtpForCausalLM, set_attention
from wmtp_models.trunk.attention import fit_of_family
from wmtp_models.trunk.packed_masks import FLEX

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
VOCABULARY, LONGEST, LENGTHS = 64, 20_000_000, (19, 13)
_SMALL = {
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers num_key_value_heads multi_query_groups "
    "num_experts_per_tok num_experts_per_token moe_k moe_topk",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads num_experts num_local_experts "
    "n_routed_experts moe_num_experts mamba_n_heads n_mamba_heads sliding_window attention_chunk_size "
    "index_topk index_block_size linear_num_heads",
    8: "rotary_dim hidden_size_per_layer_input head_dim attention_head_dim v_head_dim qk_nope_head_dim "
    "qk_rope_head_dim linear_head_dim mamba_d_state",
    16: "chunk_size kv_lora_rank q_lora_rank mamba_d_head mamba_headdim",
    32: "hidden_size n_embd d_model word_embed_proj_dim embedding_size emb_dim",
    48: "intermediate_size moe_intermediate_size shared_expert_intermediate_size ffn_hidden_size ffn_dim "
    "decoder_ffn_dim n_inner mlp_hidden_size expert_ffn_hidden_size",
    64: "vocab_size vocab_size_per_layer_input n_words attention_hidden_size max_position_embeddings n_positions "
    "max_seq_len max_sequence_length",
}
_SIZES = {name: size for size, names in _SMALL.items() for name in names.split()}
# What a small model needs beside sizes; the values of these are among those that `shrink` gives.
_OVERRIDES: dict[str, dict[str, Any]] = {
    "axk1": {"n_group": 1, "topk_group": 1},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16},
    "gemma3n_text": {
        "num_hidden_layers": 2,
        "intermediate_size": [48, 48],
        "layer_types": ["sliding_attention", "full_attention"],
        "activation_sparsity_pattern": [0.0, 0.0],
        "num_kv_shared_layers": 0,
    },
    "longcat_flash": {"qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "head_dim": 8, "zero_expert_num": 2},
    "bamba": {"mamba_d_head": 16, "mamba_n_heads": 4, "hidden_size": 32},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "granitemoehybrid": {"mamba_d_head": 16, "mamba_n_heads": 4, "hidden_size": 32},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "lfm2": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "minimax_m3_vl_text": {"layer_types": ["minimax_m3_sparse", "full_attention"], "num_hidden_layers": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "mamba2": {"num_heads": 4, "head_dim": 8, "hidden_size": 32, "expand": 1, "n_groups": 1},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "xlstm": {"hidden_size": 32, "num_heads": 4},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"hidden_size": 32},
}


class Family(NamedTuple):
    """What was found of one `model_type`.

    Attributes:
        name: of the class, or None where no small model of it could be built.
        rows: `packed`, `one document`, or None where it has no heads.
        reason: why not.
        attention: what beside sdpa keeps packed documents apart.
    """

    name: str | None
    rows: str | None = None
    reason: str = ""
    attention: str = ""


def shrink(config: PreTrainedConfig) -> None:
    """Make every size small that has a known name, in place."""
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            shrink(value)
        elif name in _SIZES and isinstance(value, int) and value > _SIZES[name]:
            setattr(config, name, _SIZES[name])
        elif name in ("bos_token_id", "eos_token_id", "pad_token_id") and value is not None:
            setattr(config, name, 0)
    if {"kv_lora_rank", "num_key_value_heads"} <= vars(config).keys():  # latent attention has as many
        config.num_key_value_heads = vars(config)["num_attention_heads"]


def build(model_type: str) -> PreTrainedModel:
    """Build a small model, with weights that depend on nothing but the type."""
    config = CONFIG_MAPPING[model_type](**_OVERRIDES.get(model_type, {}))
    shrink(config)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if size > LONGEST:
        raise ValueError(f"a model of {size // 1_000_000} million parameters is left")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # far from where it starts, where attention would be all but even
        for parameter in model.parameters():
            parameter.add_((0.15 if parameter.ndim > 1 else 0.05) * torch.randn_like(parameter))
    return model


def documents() -> list[Tensor]:
    """Two documents, longer than the windows and blocks of tokens that are left."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, VOCABULARY, (length,), generator=generator) for length in LENGTHS]


@torch.no_grad()
def plain_losses(model: PreTrainedModel, ahead: int) -> list[Tensor]:
    """The losses of the tokens `ahead` of those that the plain model was given, each document by itself."""
    losses = []
    for tokens in documents():
        logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-ahead].float()
        losses.append(cross_entropy(logits, tokens[ahead:], reduction="none"))
    return losses


@torch.no_grad()
def our_losses(policy: MtpForCausalLM, packing: bool, head: int) -> list[Tensor]:
    """The same of a policy's head, from one row of both documents, or from two padded rows."""
    both = documents()
    first, second = LENGTHS
    owner = torch.tensor([0] * first + [1] * second)
    if packing:
        output = policy(torch.cat(both)[None], document_ids=owner[None])
        rows = [(0, slice(0, first)), (0, slice(first, first + second))]
    else:
        ids, labels = torch.zeros(2, first + 2, dtype=torch.long), torch.full((2, first + 2), -100)
        for row, tokens in enumerate(both):
            ids[row, : len(tokens)] = labels[row, : len(tokens)] = tokens
        inside = (labels >= 0).long()
        output = policy(ids, labels=labels, document_ids=1 - inside, attention_mask=inside)
        rows = [(0, slice(0, first)), (1, slice(0, second))]
    for row, place in rows:
        assert not output.valid[row, place, head][-1 - head :].any()
    return [output.ce[row, place, head][: -1 - head] for row, place in rows]


def look(model_type: str) -> Family:
    """Find out of one type. Raises AssertionError where a model that has heads has other losses than the plain one."""
    try:
        model = build(model_type)
    except Exception as error:  # each fails in a way of its own
        return Family(None, None, f"{type(error).__name__}: {' '.join(str(error).split())[:120]}")
    name = type(model).__name__
    expected = [plain_losses(model, ahead) for ahead in (1, 2)]
    default = model.config._attn_implementation
    reasons: list[str] = []
    rows: list[str] = []
    attention: list[str] = []
    for packing in (True, False):
        try:
            policy = MtpForCausalLM.wrap(model, 2, packing=packing).eval()
        except UserError as error:
            reasons.append(str(error).removeprefix(f"{name} cannot be wrapped: ").split("; ")[0])
            continue
        for head in (0, 1):  # head 1 begins as a copy of the last layer, and so with its predictions
            for ours, plain in zip(our_losses(policy, packing, head), expected[head], strict=True):
                torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
        for kind in fitting_attention(model) if packing else []:
            set_attention(policy, kind)
            with stand_ins():
                for head in (0, 1):
                    for ours, plain in zip(our_losses(policy, packing, head), expected[head], strict=True):
                        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)
            set_attention(policy, default)
            attention.append(kind)
        policy = MtpForCausalLM.wrap(model, 2, head_kind="sequential", packing=packing).eval()
        with torch.no_grad():
            alone = [policy(tokens[None]).ce[0, :-2, 1] for tokens in documents()]
        for together, by_itself in zip(our_losses(policy, packing, 1), alone, strict=True):
            torch.testing.assert_close(together, by_itself, rtol=1e-4, atol=1e-4)
        rows.append("packed" if packing else "one document")
    names = ", ".join(kind.split("_")[0] for kind in attention)
    return Family(name, rows[0] if rows else None, reasons[-1] if reasons else "", names)


def fitting_attention(model: PreTrainedModel) -> list[str]:
    """What a model could have on a GPU with FlashAttention 2, were its heads of a real size."""
    fit = fit_of_family(model, True, {"dropout_p", "softcap"})
    why_not = {FLEX: fit.why_not_flex, FLASH: fit.why_not_flash}
    return [kind for kind, reason in why_not.items() if reason is None]


def row_of(model_type: str, family: Family) -> str:
    """The row of the page's table."""
    rows = family.rows or ("none" if family.name else "not tried")
    reason = family.reason.replace("|", " ")
    return f"| `{model_type}` | {family.name or ''} | {rows} | {family.attention} | {reason} |"


def page() -> str:
    """The text of docs/families.md."""
    found = {model_type: look(model_type) for model_type in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}
    counts = {
        "packed": sum(family.rows == "packed" for family in found.values()),
        "alone": sum(family.rows == "one document" for family in found.values()),
        "refused": sum(family.name is not None and family.rows is None for family in found.values()),
        "not_built": sum(family.name is None for family in found.values()),
    }
    rows = "\n".join(row_of(model_type, family) for model_type, family in found.items())
    return _PAGE.format(version=transformers.__version__, total=len(found), rows=rows, **counts)


_PAGE = """# Which models can have heads

Every causal language model of transformers {version}, shrunken to two layers:

| model types | |
|--:|---|
| {packed} | take packed rows |
| {alone} | take rows of one document (`data.packing: false`) |
| {refused} | are refused, with the reason below |
| {not_built} | were not tried, as no small model of them could be built here |
| {total} | in all |

Each that is taken was compared with the plain model on two documents of 19 and 13 tokens, in a row each and, where it
takes packed rows, in one; windows and blocks of tokens were shortened to 4. Compared were the losses of head 0, and
those of a new `layer` head, which begins as a copy of the last layer. A `sequential` head was compared with itself on
each document alone. `tests/models/test_families.py` does so again and holds this page against what it finds;
`python tests/models/families.py` writes the page.

Attention is what `model.attention` can be beside `sdpa`, as far as the family decides. With these heads 0 and 1 were
compared with the plain model too, on a CPU: flex_attention uncompiled, and in the place of FlashAttention a loop over
the documents that it is told of.

A family may have layers of several kinds, and the default ones were tried, where nothing else is said in that file. A
model of other kinds is looked at when a run names it.

A run that names a model which is refused ends with its reason. What has routers trains with the family's own auxiliary
loss, or is refused where that is not known.

| `model_type` | class | rows | attention | why not packed, or not at all |
|---|---|---|---|---|
{rows}
"""


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    PAGE.write_text(page())
