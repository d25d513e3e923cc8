"""flex_attention as it is compiled, on a CPU: its forward alone, which is all that torch has there."""

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoConfig, AutoModelForCausalLM

from wmtp_models import ReferenceModel, set_attention
from wmtp_models.trunk.packed_masks import FLEX
from wmtp_models.trunk.packing_layout import DocumentBounds

pytestmark = pytest.mark.slow
ROWS = ([[100, 156], [256]], [[5, 251], [130, 120, 6]], [[256], [256]])


def test_one_kernel_for_every_batch() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model("llama", vocab_size=64, num_key_value_heads=2, initializer_range=0.2, **sizes)
    reference = ReferenceModel(AutoModelForCausalLM.from_config(config))
    counters.clear()
    for rows in ROWS:
        lengths = [length for row in rows for length in row]
        batch = {
            "input_ids": torch.randint(64, (2, 256)),
            "position_ids": torch.cat([torch.arange(length) for length in lengths]).view(2, 256),
            "bounds": DocumentBounds(torch.tensor([0, *lengths]).cumsum(0).to(torch.int32), max(lengths)),
        }
        set_attention(reference, "sdpa")
        expected = reference.token_losses(**batch)
        set_attention(reference, FLEX)
        torch.testing.assert_close(reference.token_losses(**batch), expected, rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 1
