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
}


def compiled(kernel, constants, dtype):
    types = {"order": "*i64", "count": "*i64", "leave": "*i1", **dict.fromkeys(("out", "a", "b"), f"*{dtype}")}
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = [i for i, name in enumerate(names) if name not in (*constants, "first", "last")]  # as tensors mostly are
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    return triton.compile(source, target=H100)


def takes(binary):
    """Return bytes of shared memory, registers and bytes of spilled ones of a thread, and if tensor cores multiply."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = subprocess.run([DUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    registers, stack = (int(re.search(rf"{word}:(\d+)", usage.stdout)[1]) for word in ("REG", "STACK"))
    return {
        "shared": binary.metadata.shared,
        "registers": registers,
        "spilled": stack,
        "tensor_cores": "wgmma" in binary.asm["ptx"],
    }


if __name__ == "__main__":
    print(json.dumps({name: takes(compiled(*kernel, "bf16")) for name, kernel in KERNELS.items()}))
