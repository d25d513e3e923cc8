"""FLOP of matrix products, as torch counts them."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_flop(operation: Callable[[], Any]) -> int:
    """Return the FLOP of an operation's matrix products, those of attention included."""
    # Torch counts `addmm`, but not `addmm_`; nor the products of attention on a CPU, unless they are done one by one.
    mapping = {torch.ops.aten.addmm_: _addmm_flop}
    attention = nullcontext() if torch.cuda.is_available() else sdpa_kernel(SDPBackend.MATH)
    eager = torch.compiler.set_stance("force_eager")  # what is compiled does not run under a counter
    with eager, attention, FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        operation()
    return int(counter.get_total_flops())


def _addmm_flop(_total: list[int], a: list[int], b: list[int], **_: Any) -> int:
    """Return the FLOP of a product of `[n, k]` and `[k, m]`."""
    return 2 * a[0] * a[1] * b[1]
