"""Floating-point operations, and the GPU-hours that they take at a stated utilisation."""

from scaling.model_size import ModelSize
from scaling.plan import Plan, Row, Table
from wmtp_core.selection import keep_ratio


def layer_forward(model: ModelSize, sequence_length: int) -> float:
    """Of one layer for one token: 2 a weight, and attention over the whole row, which a masked kernel computes."""
    return 2 * model.layer_matrices + _attention(model, sequence_length)


def forward(model: ModelSize, sequence_length: int) -> float:
    """Of trunk and heads for one token, without the loss."""
    return (model.layers - 1 + model.horizon) * layer_forward(model, sequence_length)


def loss_pass(model: ModelSize) -> float:
    """U for one token: the product of all heads' states with the unembedding."""
    return 2 * model.horizon * model.hidden_size * model.vocab_size


def training_step(model: ModelSize, sequence_length: int, k_percent: float | None, checkpointing: bool) -> float:
    """Forward and backward of one token; `k_percent` of the later heads' predictions are learned, None: all.

    A backward costs two forwards. Selection saves in the loss, which costs (1 + 2s)U, and in the linear layers of
    later heads but for keys and values.
    """
    once = forward(model, sequence_length)
    kept = 1.0 if k_percent is None else keep_ratio(k_percent, model.horizon)
    skipped = 0.0 if k_percent is None else 1 - k_percent
    saved = (model.horizon - 1) * skipped * 2 * 2 * model.row_sparse_matrices
    return once * (4 if checkpointing else 3) - saved + (1 + 2 * kept) * loss_pass(model)


def score_token(reference: ModelSize, sequence_length: int) -> float:
    """One forward of the reference for one token, its loss included."""
    return forward(reference, sequence_length) + loss_pass(reference)


def compute_table(plan: Plan) -> Table:
    """By token, and as calculated GPU-hours for all of the corpus."""
    policy, length = plan.policy, plan.sequence_length

    def row(name: str, formula: str, flop: float) -> Row:
        hours = flop * plan.tokens / (plan.peak_flops * plan.utilisation) / 3600
        return Row(name, formula, [flop / 1e9, hours])

    scoring = score_token(plan.reference, length)
    selecting = training_step(policy, length, plan.k_percent, True)
    return Table(
        "Work, activations checkpointed",
        ["GFLOP a token", "GPU-hours, calculated"],
        1,
        "",
        [
            row("scoring the corpus, once", "f′ + U′", scoring),
            row("mtp-baseline", "4f + 3U", training_step(policy, length, None, True)),
            row("rho1-wmtp, scored ahead", "4f − 4(H−1)(1−k)Q + (1+2s)U", selecting),
            row("rho1-wmtp, live reference", "the same + f′ + U′", selecting + scoring),
        ],
        [
            "f = (L−1+H)·(2M + 4SW), of which checkpointing repeats one; U = 2HDV; s = (1 + (H−1)k)/H. M are a layer's "
            "matrices and Q those that skip rows. f′ and U′ are the reference's.",
            f"GPU-hours are calculated, not measured: {plan.tokens:.3g} tokens at {plan.utilisation:.0%} of "
            f"{plan.peak_flops / 1e12:g} TFLOP/s a GPU.",
        ],
    )


def _attention(model: ModelSize, sequence_length: int) -> float:
    return 4 * sequence_length * model.attention_width
