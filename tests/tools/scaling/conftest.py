"""A plan of round numbers."""

import pytest
from scaling.engines import read_engines
from scaling.model_size import ModelSize
from scaling.plan import Plan


@pytest.fixture
def plan() -> Plan:
    """1000 parameters on 4 GPUs, 2 rows of 8 tokens each, 3 micro-batches a step, two heads."""
    model = ModelSize(
        trunk=500,
        heads=300,
        embedding=200,
        unembedding=0,
        layer_matrices=100,
        row_sparse_matrices=60,
        layers=3,
        horizon=2,
        vocab_size=20,
        hidden_size=10,
        intermediate_size=30,
        attention_heads=2,
        attention_width=10,
        rows_of_logits=1024,
    )
    return Plan(model, model, 4, 2, 2, 3, 8, 0.5, 2, 3600.0, 1000.0, 0.5, read_engines())
