"""Bytes per GPU by ZeRO stage."""

from collections.abc import Callable, Sequence

from scaling.plan import Plan, Row, Table
from scaling.transient import activations, loss_buffers, selection_buffers

STAGES = ("0 (float32)", "1", "2", "3", "2 offload", "3 offload")
# DeepSpeed's defaults, in elements: reduce_bucket_size; stage3_max_live_parameters, which sub_group_size equals.
BUCKET, LIVE = 5e8, 1e9


def held_by_engine(parameters: int, gpus: int, stage: int, offload: bool = False) -> dict[str, float]:
    """Bytes that a DeepSpeed engine holds on a GPU between steps and, for the gradients, until the step.

    Stage 0 is float32, the others bf16 with float32 master weights and moments; gradients are summed in bf16.
    """
    whole, share = float(parameters), parameters / gpus
    if stage == 0:
        return {"parameters": 4 * whole, "gradients": 4 * whole, "optimizer": 8 * whole}
    return {
        "parameters": 2 * (share if stage == 3 else whole),
        "gradients": 0 if offload else 2 * (whole if stage == 1 else share),
        "optimizer": 0 if offload else 12 * share,
    }


def memory_table(plan: Plan) -> Table:
    """The table, its sums for a scored and for a live reference."""
    model, reference = plan.policy.parameters, plan.reference.parameters
    held = [held_by_engine(model, plan.gpus, int(stage[0]), "offload" in stage) for stage in STAGES]
    element = [4 if stage.startswith("0") else 2 for stage in STAGES]
    sharded = [stage.startswith("3") for stage in STAGES]

    def by_element(compute: Callable[[int], float]) -> list[float]:
        return [compute(size) for size in element]

    state = [
        Row("parameters", "2P; stage 0: 4P; stage 3: 2P/R", [h["parameters"] for h in held]),
        Row("gradients", "2P/R; stage 0: 4P; stage 1: 2P", [h["gradients"] for h in held]),
        Row("optimizer: master weights, two moments", "12P/R; stage 0: 8P", [h["optimizer"] for h in held]),
        Row("bucket of gradients", "2·5·10⁸; stage 0: 4·5·10⁸", by_element(lambda size: size * BUCKET)),
        Row("gathered parameters", "stage 3: 2·min(P, 10⁹)", [2 * min(model, LIVE) * on for on in sharded]),
    ]
    loss_formula = "2eNHD + (4+e)VD + (1+s)eCV; stage 0: 4VD"  # float32 gradients are not summed apart
    loss = Row("loss op", loss_formula, by_element(lambda size: loss_buffers(plan, size)))
    selection = Row("selection, scope batch", "34(H−1)RN", [selection_buffers(plan)] * len(STAGES))
    kept = {
        name: Row(f"activations, {name}*", formula, by_element(lambda size, on=on: activations(plan, size, on)))
        for name, on, formula in (
            ("checkpointed", True, "L·eND + A + F"),
            ("all kept", False, "(L−1+H)·A + F"),
        )
    }
    live = [
        Row("live reference, whole", "2P′", [2.0 * reference] * len(STAGES)),
        Row(
            "live reference, sharded",
            "2P′/R + 2·min(P′, 10⁹)",
            [2 * reference / plan.gpus + 2 * min(reference, LIVE)] * len(STAGES),
        ),
    ]
    at_step = [_at_step(model / plan.gpus, stage) for stage in STAGES]
    sums = []
    for name in kept:
        for title, row in (("scored ahead", None), ("live reference, whole", live[0])):
            standing = _add(*state, *([] if row is None else [row]))
            passing = [max(a, b) for a, b in zip(_add(kept[name], loss, selection), at_step, strict=True)]
            total = [a + b for a, b in zip(standing, passing, strict=True)]
            sums.append(Row(f"**sum: {title}, {name}**", "see below", total))
    step = Row("float32 gradients while stepping", "4P/R; stage 3: 4·min(P/R, 10⁹)", at_step)
    return Table(
        "Memory per GPU", STAGES, 1e9, "GB", [*state, step, loss, selection, *kept.values(), *live, *sums], _NOTES
    )


_NOTES = [
    "A is what autograd keeps of a layer, N·(2·(4D + 2eD + 4) + 4eW + 4·heads + eS + 4eI), and F of the final norms, "
    "N·H·((4+e)·D + 4); e is the bytes of an activation (2; stage 0: 4). *An estimate: it is what autograd saves, and "
    "knows nothing of the memory that kernels use meanwhile.",
    "A sum is what stands (parameters to gathered parameters, reference) and the larger of what passes in forward and "
    "backward (loss op, selection, activations) and in the step.",
]


def _at_step(share: float, stage: str) -> float:
    """The optimizer's float32 copy of the gradients, as DeepSpeed's source has it."""
    if "offload" in stage or stage.startswith("0"):
        return 0
    return 4 * (min(share, LIVE) if stage.startswith("3") else share)


def _add(*rows: Row) -> Sequence[float]:
    return [sum(values) for values in zip(*(row.values for row in rows), strict=True)]
