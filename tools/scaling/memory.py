"""Bytes per GPU by DeepSpeed configuration."""

from collections.abc import Callable, Sequence

from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from scaling import engine_memory
from scaling.engines import Engine
from scaling.plan import Plan, Row, Table
from scaling.transient import activations, loss_buffers, selection_buffers


def memory_table(plan: Plan) -> Table:
    """The table, its sums for a scored and for a live reference."""
    model, columns = plan.policy.parameters, len(plan.engines)

    def by_engine(name: str, formula: str, compute: Callable[[Engine], float]) -> Row:
        return Row(name, formula, [compute(engine) for engine in plan.engines])

    def held(name: str, kind: str, formula: str) -> Row:
        return by_engine(name, formula, lambda engine: engine_memory.held_on_gpu(model, plan.gpus, engine)[kind])

    state = [
        held("parameters", "parameters", "2P; zero0: 4P; zero3: 2P/R; zero3_offload: 0"),
        held("gradients", "gradients", "0; zero0: 4P; zero1: 2P"),
        held("their sums, float32", "sums", "4P/R; zero0, zero3_offload: 0; zero1: 4P"),
        held("optimizer: master weights, two moments", "optimizer", "12P/R; zero0: 8P"),
        by_engine("bucket of gradients", "zero2: 2B; zero3: cB", engine_memory.bucket),
        by_engine("gathered parameters", "zero3: 2·min(P, 10⁹)", lambda engine: engine_memory.gathered(model, engine)),
    ]
    at_step = by_engine(
        "while stepping",
        "4P/R; zero0: 4P; zero3: 8·min(P/R, 10⁹)",
        lambda engine: engine_memory.step_buffers(model, plan.gpus, engine),
    )
    passing = [
        by_engine(
            "copies while gradients are exchanged",
            "zero0, zero3: c·min(P, B); zero1: 4P if P < B; zero2: (2+c)·min(P, B)",
            lambda engine: engine_memory.exchange_copies(model, engine),
        ),
        by_engine(
            "loss op",
            "2eNHD + (4+e)VD + (1+s)eCV; zero0: 4VD",  # float32 gradients are not summed apart
            lambda engine: loss_buffers(plan, engine.element),
        ),
        Row("selection, scope batch", "34(H−1)RN", [selection_buffers(plan)] * columns),
    ]
    kept = {
        name: Row(f"activations, {name}*", formula, [activations(plan, engine.element, on) for engine in plan.engines])
        for name, on, formula in (("checkpointed", True, "L·eND + A + F"), ("all kept", False, "(L−1+H)·A + F"))
    }
    live = _live_reference(plan)
    sums = []
    for name in kept:
        for title, row in (("scored ahead", None), ("live reference, whole", live[0])):
            standing = _add(*state, *([] if row is None else [row]))
            larger = [max(a, b) for a, b in zip(_add(kept[name], *passing), at_step.values, strict=True)]
            total = [a + b for a, b in zip(standing, larger, strict=True)]
            sums.append(Row(f"**sum: {title}, {name}**", "see below", total))
    rows = [*state, at_step, *passing, *kept.values(), *live, *sums]
    return Table("Memory per GPU", [engine.name for engine in plan.engines], 1e9, "GB", rows, _NOTES)


_NOTES = [
    "Columns are the files of ds_configs, and what is said of zero2 and zero3 holds for their offloading ones where "
    "nothing else is said. B is reduce_bucket_size, 5·10⁸; c is the bytes of a gradient on its way, 4 for "
    "communication_data_type fp32; e is the bytes of an activation, 2 (zero0: 4).",
    "A is what autograd keeps of a layer, N·(2·(4D + 2eD + 4) + 4eW + 4·heads + eS + 4eI), and F of the final norms, "
    "N·H·((4+e)·D + 4). *An estimate: it is what autograd saves, and knows nothing of the memory that kernels use "
    "meanwhile.",
    "A sum is what stands (parameters to gathered parameters, reference) and the larger of what passes in forward and "
    "backward (copies, loss op, selection, activations, as if all at once) and in the step.",
]


def _live_reference(plan: Plan) -> list[Row]:
    reference, columns = plan.reference.parameters, len(plan.engines)
    shared = 2 * reference / plan.gpus + 2 * min(reference, DeepSpeedZeroConfig(stage=3).max_live_parameters)
    return [
        Row("live reference, whole", "2P′", [2.0 * reference] * columns),
        Row("live reference, sharded", "2P′/R + 2·min(P′, 10⁹)", [shared] * columns),
    ]


def _add(*rows: Row) -> Sequence[float]:
    return [sum(values) for values in zip(*(row.values for row in rows), strict=True)]
