"""The public names of wmtp_core, and the signatures that its callers rely on."""

import inspect

import pytest

import wmtp_core


def test_every_public_name_exists_and_is_documented():
    for name in wmtp_core.__all__:
        assert getattr(wmtp_core, name).__doc__, name


@pytest.mark.parametrize(
    ("name", "signature"),
    [
        (
            "compute_weighted_mtp_loss",
            {"logits": ..., "target_ids": ..., "head_weights": ..., "horizon": 4, "attention_mask": None,
             "ignore_index": -100, "normalize_by": "valid"},
        ),
        (
            "compute_mtp_selective_weights",
            {"policy_logits": ..., "ref_logits": ..., "labels": ..., "attention_mask": ..., "k_percent": 0.6},
        ),
        ("compute_rho1_stats", {"weights": ..., "valid_mask": ...}),
        (
            "select_by_excess",
            {"ce": ..., "reference_ce": ..., "valid": ..., "k_percent": ..., "scope": "batch", "group": None,
             "from_head": 1},
        ),
        (
            "mtp_targets",
            {"labels": ..., "horizon": ..., "attention_mask": None, "document_ids": None, "ignore_index": -100},
        ),
        ("linear_cross_entropy", {"hidden": ..., "weight": ..., "targets": ..., "ignore_index": -100, "guess": None}),
        ("shift_to_heads", {"values": ..., "horizon": ..., "fill": 0}),
        ("weighted_mtp_loss", {"ce": ..., "head_weights": ..., "counts": ...}),
    ],
)  # fmt: skip
def test_signature(name, signature):
    parameters = inspect.signature(getattr(wmtp_core, name)).parameters
    actual = {key: ... if p.default is inspect.Parameter.empty else p.default for key, p in parameters.items()}
    assert list(actual.items()) == list(signature.items())
