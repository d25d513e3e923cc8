"""Bytes on disk and in main memory."""

from scaling.plan import Plan, Row, Table

_COLUMNS = ("stage 0", "stages 1, 2", "stage 3")


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
    parameters, stages = plan.policy.parameters, (0, 1, 3)
    saved = [checkpoint(parameters, stage) for stage in stages]
    return Table(
        "Disk and main memory",
        _COLUMNS,
        1e9,
        "GB",
        [
            Row("a checkpoint", "12P; stages 1, 2: 14P", saved),
            Row(
                f"keep_checkpoints: {plan.keep_checkpoints}",
                "one more while saving",
                [(plan.keep_checkpoints + 1) * size for size in saved],
            ),
            Row("the final model", "2P; stage 0: 4P", [exported(parameters, stage) for stage in stages]),
            Row("scores, float32", "4T", [scores(plan.tokens, 4)] * 3),
            Row("scores, float16", "2T", [scores(plan.tokens, 2)] * 3),
            Row("main memory of a node at start", "4P·G", [4.0 * parameters * plan.gpus_per_node] * 3),
            Row("main memory of a node, optimizer offloaded", "16P·G/R", _offloaded(plan)),
        ],
        ["T are the tokens of the corpus and G the GPUs of a node: each process builds the policy in float32 first."],
    )


def _offloaded(plan: Plan) -> list[float]:
    share = 16 * plan.policy.parameters * min(plan.gpus_per_node, plan.gpus) / plan.gpus
    return [0.0, share, share]
