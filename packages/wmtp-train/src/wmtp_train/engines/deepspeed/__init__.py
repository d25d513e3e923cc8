"""DeepSpeed: the one room that knows it. Everything else sees the port in `engines.base`."""

import os

import torch

if not torch.cuda.is_available():
    # DeepSpeed reads it when it is imported, and warns where it has to guess.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
