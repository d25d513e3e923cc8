"""What a calculation is asked for, and what it answers with."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from scaling.engines import Engine
from scaling.model_size import ModelSize


@dataclass(frozen=True)
class Plan:
    """A run of rho1-wmtp: the models, how many GPUs share the work, and how much work there is."""

    policy: ModelSize
    reference: ModelSize
    gpus: int
    gpus_per_node: int
    micro_batch: int
    accumulation: int
    sequence_length: int
    k_percent: float
    keep_checkpoints: int
    tokens: float
    """Of the corpus, for scoring and for one epoch of training."""
    peak_flops: float
    """Of one GPU, in a second."""
    utilisation: float
    """Share of that peak which a run is said to reach."""
    engines: Sequence[Engine]
    """The columns of what depends on DeepSpeed's configuration."""

    @property
    def positions(self) -> int:
        """n: of one GPU's micro-batch."""
        return self.micro_batch * self.sequence_length


@dataclass(frozen=True)
class Row:
    """One line of a table: a quantity, its formula, and its value in each column."""

    name: str
    formula: str
    values: Sequence[float]


@dataclass(frozen=True)
class Table:
    """Quantities side by side; `unit` is what a value is divided by, and `unit_name` what is then counted."""

    title: str
    columns: Sequence[str]
    unit: float
    unit_name: str
    rows: list[Row]
    notes: list[str] = field(default_factory=list)
