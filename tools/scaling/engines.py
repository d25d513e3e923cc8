"""What the files of ds_configs say about memory and traffic; what they leave out, DeepSpeed's own defaults say."""

from dataclasses import dataclass
from pathlib import Path

from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from wmtp_core import UserError
from wmtp_train.engines.deepspeed.engine import read_deepspeed_config

FOLDER = Path(__file__).parents[2] / "ds_configs"
NAMES = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
_BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Engine:
    """One DeepSpeed configuration."""

    name: str
    zero: DeepSpeedZeroConfig
    element: int
    """e: bytes of a parameter, an activation, and a gradient as the backward gives it."""
    exchanged: int
    """c: bytes of a gradient on its way to other GPUs."""

    @property
    def offloads(self) -> bool:
        """Whether the optimizer is in main memory."""
        return self.zero.offload_optimizer is not None


def read_engines(folder: Path = FOLDER) -> list[Engine]:
    """The configurations that a user copies.

    Raises:
        UserError: one that training refuses, or whose data types are not calculated.
    """
    return [_read_engine(folder / f"{name}.json") for name in NAMES]


def _read_engine(path: Path) -> Engine:
    config = read_deepspeed_config(path, world_size=1)
    zero = DeepSpeedZeroConfig(**config["zero_optimization"])
    element = "bf16" if config.get("bf16", {}).get("enabled", False) else "fp32"
    summed = config.get("data_types", {}).get("grad_accum_dtype", element)
    exchanged = config.get("communication_data_type", element)
    if element != ("bf16" if zero.stage else "fp32") or summed != "fp32" or exchanged not in _BYTES:
        raise UserError(
            f"{path}: what is calculated is float32 at stage 0, bf16 at the others, gradients summed in fp32 "
            f"(data_types.grad_accum_dtype) and exchanged in fp32 or bf16; this is {element}, {summed} and {exchanged}"
        )
    return Engine(path.stem, zero, _BYTES[element], _BYTES[exchanged])
