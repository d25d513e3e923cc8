"""Bytes that a DeepSpeed engine takes, as version 0.19.8's source has it."""

from deepspeed.runtime.engine import MEMORY_OPT_ALLREDUCE_SIZE

from scaling.engines import Engine


def held_on_gpu(parameters: int, gpus: int, engine: Engine) -> dict[str, float]:
    """Bytes on a GPU between steps and, for the gradients, from a backward to the step."""
    whole, share, stage = float(parameters), parameters / gpus, engine.zero.stage
    if stage == 0:
        return {"parameters": 4 * whole, "gradients": 4 * whole, "sums": 0, "optimizer": 8 * whole}
    sums = whole if stage == 1 else share
    return {
        "parameters": 0 if engine.zero.offload_param else 2 * (share if stage == 3 else whole),
        "gradients": 2 * whole if stage == 1 else 0,  # the others pass each one on as it comes
        "sums": 0 if stage == 3 and engine.offloads else 4 * sums,
        "optimizer": 0 if engine.offloads else 12 * share,
    }


def held_in_main_memory(parameters: int, gpus: int, engine: Engine) -> float:
    """Bytes that an offloading engine holds there for each GPU."""
    if not engine.offloads:
        return 0
    optimizer, gradients = 12, 4
    weights = 2 if engine.zero.offload_param or engine.zero.stage == 2 else 0  # at stage 2 on their way to the GPU
    sums = 4 if engine.zero.stage == 3 else 0
    return (optimizer + gradients + weights + sums) * parameters / gpus


def bucket(engine: Engine) -> float:
    """Where gradients are collected for an exchange."""
    element = {2: engine.element, 3: engine.exchanged}.get(engine.zero.stage, 0)
    return float(element * engine.zero.reduce_bucket_size)


def gathered(parameters: int, engine: Engine) -> float:
    """Whole parameters that are at hand at once."""
    return 2.0 * min(parameters, engine.zero.max_live_parameters) if engine.zero.stage == 3 else 0


def exchange_copies(parameters: int, engine: Engine) -> float:
    """What joins gradients for an exchange, and turns them into the type in which they go."""
    stage, exchanged = engine.zero.stage, engine.exchanged
    most = min(parameters, MEMORY_OPT_ALLREDUCE_SIZE if stage < 2 else engine.zero.reduce_bucket_size)
    if stage == 3:
        return float(exchanged * most)
    joined = 2 if stage == 2 else 4
    turned = 0 if exchanged == joined else exchanged
    if stage == 1:  # all matrices are one tensor, which is joined with others only if it is small
        return float(turned * parameters + (joined * parameters if parameters < MEMORY_OPT_ALLREDUCE_SIZE else 0))
    return float((joined + turned) * most)


def step_buffers(parameters: int, gpus: int, engine: Engine) -> float:
    """While stepping: the root of the second moments that torch's AdamW forms and, at stage 3, gradients joined."""
    if engine.offloads:
        return 0
    if engine.zero.stage == 3:
        return 8 * min(parameters / gpus, engine.zero.sub_group_size)
    return 4 * (parameters / gpus if engine.zero.stage else parameters)
