"""Bytes on disk and in main memory."""

from scaling.engine_memory import held_in_main_memory
from scaling.plan import Plan, Row, Table


def checkpoint(parameters: int, stage: int) -> float:
    """Bytes of one DeepSpeed checkpoint: master weights and moments, and the bf16 weights where they are whole."""
    return (14 if stage in (1, 2) else 12) * float(parameters)


def exported(parameters: int, stage: int) -> float:
    """Bytes of the final `model/`."""
    return (4 if stage == 0 else 2) * float(parameters)


def scores(tokens: float, element: int) -> float:
    """Bytes of one number per token."""
    return element * tokens


def storage_table(plan: Plan) -> Table:
    """Checkpoints, the final model, the scores, and what a node's processes need to start."""
    parameters, columns = plan.policy.parameters, len(plan.engines)
    stages = [engine.zero.stage for engine in plan.engines]
    saved = [checkpoint(parameters, stage) for stage in stages]
    node = min(plan.gpus_per_node, plan.gpus)
    offloaded = [node * held_in_main_memory(parameters, plan.gpus, engine) for engine in plan.engines]
    return Table(
        "Disk and main memory",
        [engine.name for engine in plan.engines],
        1e9,
        "GB",
        [
            Row("a checkpoint", "12P; zero1, zero2: 14P", saved),
            Row(
                f"keep_checkpoints: {plan.keep_checkpoints}",
                "one more while saving",
                [(plan.keep_checkpoints + 1) * size for size in saved],
            ),
            Row("the final model", "2P; zero0: 4P", [exported(parameters, stage) for stage in stages]),
            Row("scores, float32", "4T", [scores(plan.tokens, 4)] * columns),
            Row("scores, float16", "2T", [scores(plan.tokens, 2)] * columns),
            Row("main memory of a node at start", "4P·G", [4.0 * parameters * node] * columns),
            Row("main memory of a node in training", "zero2_offload: 18P·G/R; zero3_offload: 22P·G/R", offloaded),
        ],
        ["T are the tokens of the corpus and G the GPUs of a node: each process builds the policy in float32 first."],
    )
