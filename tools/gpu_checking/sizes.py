"""The models that are trained and decoded: Llamas of several sizes, each with what its training needs."""

from dataclasses import dataclass, field
from typing import Any

_BF16 = {
    "bf16": {"enabled": True},
    "data_types": {"grad_accum_dtype": "fp32"},
    "gradient_clipping": 1.0,
}
_OFFLOAD = {"device": "cpu", "pin_memory": True}


@dataclass(frozen=True)
class Size:
    """A model of a size, and how it is trained.

    Attributes:
        name: about its parameters before the extra heads.
        algorithms: to train with.
        trunk: `model.config`.
        vocab_size: of the tokenizer.
        length: tokens of a row.
        rows: of a micro-batch.
        zero: DeepSpeed's `zero_optimization`.
        steps: that are timed, after half as many to warm up.
        checkpointing: `model.gradient_checkpointing`.
        main_memory: bytes that training needs there.
    """

    name: str
    algorithms: tuple[str, ...]
    trunk: dict[str, Any]
    vocab_size: int = 32000
    length: int = 2048
    rows: int = 8
    zero: dict[str, Any] = field(default_factory=lambda: {"stage": 2})
    steps: int = 8
    checkpointing: bool = False
    main_memory: int = 0

    @property
    def deepspeed(self) -> dict[str, Any]:
        """DeepSpeed's JSON."""
        return {**_BF16, "zero_optimization": self.zero, "train_micro_batch_size_per_gpu": self.rows}


def llama(hidden: int, intermediate: int, layers: int, heads: int, key_value_heads: int, length: int) -> dict[str, Any]:
    """Return `model.config` of a Llama."""
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "max_position_embeddings": length,
    }


_BOTH = ("mtp-baseline", "rho1-wmtp")
SMALLEST = Size("0.1B", _BOTH, llama(768, 2048, 12, 12, 12, 2048))
SIZES = [
    SMALLEST,
    Size("1B", _BOTH, llama(2048, 5632, 22, 32, 4, 2048), rows=4, steps=6),  # TinyLlama's shape
    Size(  # Llama 2's; main memory: 22 bytes a parameter, docs/scale.md
        "7B",
        ("mtp-baseline",),
        llama(4096, 11008, 32, 32, 32, 2048),
        rows=2,
        zero={"stage": 3, "offload_optimizer": _OFFLOAD, "offload_param": _OFFLOAD},
        steps=2,
        checkpointing=True,
        main_memory=22 * 7_345_565_696,
    ),
]
_TINY = {"trunk": llama(64, 128, 2, 2, 2, 64), "vocab_size": 300, "length": 64, "rows": 2, "steps": 2}
QUICK = [
    Size("tiny", _BOTH, **_TINY),
    Size("tiny at stage 3", ("mtp-baseline",), **_TINY, zero={"stage": 3}, checkpointing=True),
    Size("too large", ("mtp-baseline",), **_TINY, main_memory=2**60),
]
