"""Bytes that reach one GPU in an optimizer step.

A gather or a scatter of T bytes over R GPUs brings each of them (R−1)/R·T, and an all-reduce twice that.
"""

from scaling.memory import STAGES
from scaling.plan import Plan, Row, Table


def engine_messages(parameters: int, stage: int, accumulation: int) -> dict[str, float]:
    """Bytes of the whole tensors that DeepSpeed hands to each kind of collective in one optimizer step.

    Stages 1 and 2 reduce whole gradients to every GPU, though each needs a part (`use_multi_rank_bucket_allreduce`).
    """
    gradients, weights = 2.0 * parameters, 2.0 * parameters
    if stage == 0:
        return {"all_reduce": 4.0 * parameters}
    if stage == 3:
        return {"all_gather": 2 * accumulation * weights, "reduce_scatter": accumulation * gradients}
    return {"all_reduce": gradients * (accumulation if stage == 2 else 1), "all_gather": weights}


def received(messages: dict[str, float], gpus: int) -> float:
    """What of these messages has to reach each GPU."""
    each = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0}
    return sum(each[kind] * size for kind, size in messages.items()) * (gpus - 1) / gpus


def selection_message(horizon: int, positions: int) -> int:
    """Bytes that one GPU contributes to the comparison of one micro-batch: score and validity, float32."""
    return 2 * 4 * (horizon - 1) * positions


def counts_message(horizon: int, micro_batch: int, accumulation: int) -> int:
    """Bytes that one GPU contributes to the denominators of a step: int64 by row and head."""
    return 8 * horizon * micro_batch * accumulation


def traffic_table(plan: Plan) -> Table:
    """ZeRO's own traffic beside selection's."""
    others, horizon = plan.gpus - 1, plan.policy.horizon
    zero = [received(engine_messages(plan.policy.parameters, int(s[0]), plan.accumulation), plan.gpus) for s in STAGES]
    selection = plan.accumulation * others * selection_message(horizon, plan.positions)
    counts = others * counts_message(horizon, plan.micro_batch, plan.accumulation)
    reference = plan.accumulation * received({"all_gather": 2.0 * plan.reference.parameters}, plan.gpus)
    rows = [
        Row("ZeRO", "g·(2·2P·a + 2P); stage 0: g·2·4P; stage 1: a = 1; stage 3: g·3·2P·a", zero),
        Row("live reference, sharded", "g·2P′·a", [reference] * len(STAGES)),
        Row("selection, scope batch", "(R−1)·8(H−1)N·a", [float(selection)] * len(STAGES)),
        Row("selection, scope sequence", "0", [0.0] * len(STAGES)),
        Row("denominators", "(R−1)·8Hma", [float(counts)] * len(STAGES)),
    ]
    share = ", ".join(f"{stage}: {selection / total:.2%}" for stage, total in zip(STAGES, zero, strict=True))
    compared = (horizon - 1) * plan.gpus * plan.positions
    return Table(
        "Received by each GPU in an optimizer step",
        STAGES,
        1e6,
        "MB",
        rows,
        [
            "g = (R−1)/R. Offloading adds 2P/R bytes to main memory and back.",
            f"Selection's gather (scope batch) against ZeRO's traffic, by stage: {share}.",
            f"Every GPU sorts (H−1)RN = {compared / 1e6:,.1f} million values in a micro-batch (scope batch), "
            f"or (H−1)N = {compared / plan.gpus / 1e6:,.3f} million (scope sequence).",
        ],
    )
