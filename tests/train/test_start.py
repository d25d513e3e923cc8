"""A start reads the weights once, and holds them once for all processes of a node."""

import pytest
import torch
from ranks_that_start import STATUS, measure_start

from ranks import on_ranks
from wmtp_models import build_policy, load_tokenizer

BF16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
LARGE = {
    "model_type": "llama", "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 20,
    "num_attention_heads": 8, "num_key_value_heads": 8,
}  # fmt: skip


def peak_of_all(samples):
    """The most that all ranks held at one moment."""
    moments = sorted((moment, rank, held) for rank, of_rank in enumerate(samples) for moment, held in of_rank)
    now, peak = [0] * len(samples), 0
    for _, rank, held in moments:
        now[rank] = held
        peak = max(peak, sum(now))
    return peak


@pytest.mark.slow
@pytest.mark.skipif(not STATUS.exists(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, None], ids=["float32", "bfloat16", "from scratch"])
def test_at_stage_3_a_node_holds_the_model_once(make_settings, write_deepspeed, tmp_path, tiny_home, source):
    precision = BF16 if source == torch.bfloat16 else {}
    config = write_deepspeed(stage=3, train_batch_size=4, **precision)
    model = {"config": LARGE}
    if source is not None:
        policy = build_policy(LARGE, len(load_tokenizer(tiny_home / "tokenizer")), horizon=3)
        policy.to(source).save_pretrained(tmp_path / "model")
        model = {"source": str(tmp_path / "model"), "config": None}
    small, large = (make_settings(algo="mtp-baseline", deepspeed_config=config, **of) for of in ({}, {"model": model}))
    found = on_ranks(tmp_path, 2, measure_start, small, large)
    dtype = source or torch.float32
    for rank in found:
        assert rank["dtypes"] == {dtype}
        assert rank["held"] == pytest.approx(found[0]["parameters"] / 2, rel=1e-3)
    whole = found[0]["parameters"] * dtype.itemsize
    assert 0.9 * whole <= peak_of_all([rank["samples"] for rank in found]) <= 1.3 * whole
