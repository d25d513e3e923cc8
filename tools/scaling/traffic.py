"""Bytes that reach one GPU in an optimizer step.

A gather or a scatter of T bytes over R GPUs brings each of them (R−1)/R·T, and an all-reduce twice that.
"""

from scaling.engines import Engine
from scaling.plan import Plan, Row, Table


def engine_messages(parameters: int, engine: Engine, accumulation: int) -> dict[str, float]:
    """Bytes of the whole tensors that DeepSpeed hands to each kind of collective in one optimizer step.

    Stages 1 and 2 reduce whole gradients to every GPU, though each needs a part (`use_multi_rank_bucket_allreduce`).
    """
    stage, gradients, weights = engine.zero.stage, float(engine.exchanged * parameters), 2.0 * parameters
    if stage == 0:
        return {"all_reduce": gradients}
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
    others, horizon, columns = plan.gpus - 1, plan.policy.horizon, [engine.name for engine in plan.engines]
    messages = [engine_messages(plan.policy.parameters, engine, plan.accumulation) for engine in plan.engines]
    zero = [received(message, plan.gpus) for message in messages]
    selection = plan.accumulation * others * selection_message(horizon, plan.positions)
    counts = others * counts_message(horizon, plan.micro_batch, plan.accumulation)
    reference = plan.accumulation * received({"all_gather": 2.0 * plan.reference.parameters}, plan.gpus)
    rows = [
        Row("ZeRO", "g·(2cP·a + 2P); zero0: g·2cP; zero1: a = 1; zero3: g·(4+c)P·a", zero),
        Row("live reference, sharded", "g·2P′·a", [reference] * len(columns)),
        Row("selection, scope batch", "(R−1)·8(H−1)N·a", [float(selection)] * len(columns)),
        Row("selection, scope sequence", "0", [0.0] * len(columns)),
        Row("denominators", "(R−1)·8Hma", [float(counts)] * len(columns)),
    ]
    share = ", ".join(f"{name}: {selection / total:.2%}" for name, total in zip(columns, zero, strict=True))
    compared = (horizon - 1) * plan.gpus * plan.positions
    return Table(
        "Received by each GPU in an optimizer step",
        columns,
        1e6,
        "MB",
        rows,
        [
            "g = (R−1)/R. Offloading sends 4P/R bytes of gradients to main memory and 2P/R of weights back, "
            "zero3_offload in every micro-batch.",
            f"Selection's gather (scope batch) against ZeRO's traffic, by configuration: {share}.",
            f"Every GPU sorts (H−1)RN = {compared / 1e6:,.1f} million values in a micro-batch (scope batch), "
            f"or (H−1)N = {compared / plan.gpus / 1e6:,.3f} million (scope sequence).",
        ],
    )
