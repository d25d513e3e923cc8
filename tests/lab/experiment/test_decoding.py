import json
from pathlib import Path
from typing import Any

import pytest
import torch

from wmtp_core import UserError
from wmtp_lab.experiment.decoding import GREEDY, SAMPLED, held_out_prompts, measure_decoding
from wmtp_lab.experiment.plan import DecodingPlan
from wmtp_models import MtpForCausalLM, build_policy, load_tokenizer

HORIZON = 3


def test_prompts_are_evenly_spaced_and_never_cross_a_document(tiny_home: Path, tmp_path: Path) -> None:
    encode = load_tokenizer(tiny_home / "tokenizer")
    texts = ["def a(x): return x\n" * 3, "x", "def b(y): return y\n" * 2]
    file = tmp_path / "clean.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    pieces = []
    for text in texts:
        ids = encode(text, add_special_tokens=False)["input_ids"]
        pieces += [ids[place * 4 : place * 4 + 4] for place in range(len(ids) // 4)]
    assert len(pieces) > 6

    def prompts(count: int) -> list[list[int]]:
        plan = DecodingPlan(prompts=count, prompt_tokens=4, new_tokens=2)
        return held_out_prompts(file, tiny_home / "tokenizer", plan)

    assert prompts(len(pieces)) == pieces
    assert prompts(2) == [pieces[0], pieces[len(pieces) // 2]]
    with pytest.raises(UserError, match=rf"decoding\.prompts is 999, and .* holds {len(pieces)} of 4 tokens"):
        prompts(999)


def policy_of_one_token(config: dict[str, Any], sign: float) -> MtpForCausalLM:
    """Head 0 is sure of one token wherever it stands, and later heads of the same, or (sign -1) of another."""
    policy = build_policy(config | {"tie_word_embeddings": False}, 50, HORIZON, head_kind="linear")
    with torch.no_grad():
        policy.get_input_embeddings().weight.fill_(1)
        policy.get_output_embeddings().weight.mul_(1e6)
        for layer in policy.causal_lm.model.layers[:-1]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        head = policy.trunk.last_layer
        head.self_attn.o_proj.weight.zero_()
        head.mlp.down_proj.weight.zero_()
        for later in policy.heads.blocks:
            later.layer.weight.mul_(sign)
    return policy


@pytest.mark.parametrize(("sign", "accepted"), [(1, HORIZON - 1), (-1, 0)])
def test_heads_that_agree_are_always_accepted_and_others_never(
    sign: float, accepted: int, tiny_llama: dict[str, Any], tmp_path: Path
) -> None:
    policy_of_one_token(tiny_llama, sign).save_pretrained(tmp_path)
    metrics = measure_decoding(tmp_path, [[1, 2], [3, 4], [5, 6]], new_tokens=1 + 2 * HORIZON)
    assert metrics[GREEDY] == metrics[SAMPLED] == accepted
    assert metrics[f"{GREEDY}/head_1"] == metrics[f"{SAMPLED}/head_2"] == accepted / (HORIZON - 1)
