"""The process group as DeepSpeed starts it."""

import logging

import deepspeed
import torch
from deepspeed.constants import default_pg_timeout

STEP_TIMEOUT = default_pg_timeout
"""How long a collective of a training step waits: DeepSpeed's 10 minutes, or as many as `DEEPSPEED_TIMEOUT` says."""


def init_process_group() -> None:
    """Join the process group that the launcher's variables lay out, with the backend of the accelerator."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if not torch.cuda.is_available():
        # Otherwise DeepSpeed compiles a C++ collective that training does not use, and a kill meanwhile leaves a lock.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(verbose=False)
