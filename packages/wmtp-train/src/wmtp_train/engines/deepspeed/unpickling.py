"""What DeepSpeed reads of a checkpoint: tensors, plain values and a few types of its own, and nothing that runs code.

Its files are pickles, which can name any function to call, and it asks torch to load them whatever they name. A
checkpoint may come from a stranger.
"""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

from wmtp_core import UserError

_TYPES = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
_FORCE = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}
"""torch's own way to overrule what a caller of `torch.load` asks for."""


@contextmanager
def known_types_only(checkpoint: Path) -> Iterator[None]:
    """Let every `torch.load` in here build no other types than these, whoever calls it.

    Args:
        checkpoint: that is being read, for the message.

    Raises:
        UserError: a file names something else, which was not called.
    """
    try:
        with patch.dict(os.environ, _FORCE), torch.serialization.safe_globals(_TYPES):
            yield
    except pickle.UnpicklingError as error:
        what = " ".join(str(error).split())
        raise UserError(
            f"checkpoint {checkpoint}: a file in it is not what DeepSpeed writes, and could run a program when it is "
            f"read ({what[:160]} …): nothing was run; remove it, and --resume goes on from the one before"
        ) from error
