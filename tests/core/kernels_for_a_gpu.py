"""Compiles kernels for a GPU that need not be there, and prints what they take of it; a script, uninterpreted."""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from wmtp_core import counted_products
from wmtp_core.losses import remaining_rows, triton_kernels

H100 = GPUTarget("cuda", 90, 32)
TILE = counted_products._TILE
DUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
KERNELS = {
    "rows to rows": (
        counted_products._rows_kernel,
        {"a_ordered": True, "out_ordered": True, "leaves": True, "b_stride_column": 1, **TILE},
    ),
    "rows to a chunk": (
        counted_products._rows_kernel,
        {"a_ordered": True, "out_ordered": False, "leaves": False, "b_stride_depth": 1, **TILE},
    ),
    "sums": (counted_products._sum_kernel, {"a_ordered": True, **TILE}),
    "losses": (triton_kernels._losses_kernel, {"scale": 1.0, "softcap": 0.0, "block": triton_kernels.LOSS_BLOCK}),
    "gradients": (
        triton_kernels._gradients_kernel,
        {"scale": 1.0, "softcap": 0.0, "block": triton_kernels._GRADIENT_BLOCK},
    ),
    "gradients in place": (
        remaining_rows._gradients_in_place_kernel,
        {"scale": 1.0, "softcap": 0.0, "block": triton_kernels.LOSS_BLOCK},
    ),
}
WARPS = {"losses": triton_kernels.LOSS_WARPS, "gradients in place": triton_kernels.LOSS_WARPS}
TYPES = {
    "*i64": ("order", "count", "targets", "kept"),
    "*i1": ("leave",),
    "*fp32": ("losses", "peaks", "sums", "grad_losses"),
    "*bf16": ("out", "a", "b", "logits"),
}
UNALIGNED = {"first", "last", "vocabulary"}
"""Numbers that are no multiple of 16: a vocabulary such as GPT-2's 50257, in rows that have room for more."""


def compiled(kernel, constants, warps):
    types = {name: kind for kind, named in TYPES.items() for name in named}
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = [i for i, name in enumerate(names) if name not in (*constants, *UNALIGNED)]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    return triton.compile(source, target=H100, options={"num_warps": warps})


def takes(binary):
    """Return what a program takes of a multiprocessor, if tensor cores multiply, and if it loads 16 bytes at a time."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = subprocess.run([DUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    registers, stack = (int(re.search(rf"{word}:(\d+)", usage.stdout)[1]) for word in ("REG", "STACK"))
    return {
        "shared": binary.metadata.shared,
        "registers": registers,
        "spilled": stack,
        "threads": 32 * binary.metadata.num_warps,
        "tensor_cores": "wgmma" in binary.asm["ptx"],
        "wide": re.search(r"ld\.global\S*\.v4", binary.asm["ptx"]) is not None,
    }


if __name__ == "__main__":
    print(json.dumps({name: takes(compiled(*kernel, WARPS.get(name, 4))) for name, kernel in KERNELS.items()}))
