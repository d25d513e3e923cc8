"""Every setting of a run, in one tree: command line over environment (`WMTP_…`) over YAML over these defaults.

What DeepSpeed owns (batch sizes, ZeRO, precision, clipping) stands in its own JSON file and not here.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from wmtp_train.settings.sections import (
    STRICT,
    CriticSettings,
    DataSettings,
    DistillSettings,
    EvaluationSettings,
    ModelSettings,
    OptimizerSettings,
    ReferenceSettings,
    SelectionSettings,
)


class Settings(BaseSettings):
    """One run of WMTP."""

    model_config = SettingsConfigDict(
        **STRICT,
        env_prefix="WMTP_",
        env_nested_delimiter="__",
        cli_implicit_flags=True,
        cli_exit_on_error=False,
        nested_model_default_partial_update=True,
    )

    algo: str = "rho1-wmtp"
    """mtp-baseline, critic-wmtp, rho1-wmtp, reach-wmtp, or a control: random, softmax-excess, labelled."""
    config: Path | None = None
    """YAML file with any of these settings."""
    deepspeed_config: Path = Path("ds_configs/zero2.json")
    """DeepSpeed's JSON: batch sizes, ZeRO stage, precision, clipping."""
    output_dir: Path = Path("runs/default")
    """Checkpoints, figures, the final model and its evaluation."""
    tiny: bool = False
    """A complete small run that needs no data, model or earlier step."""
    resume: bool = False
    """Go on from the newest checkpoint in `output_dir`, if there is one."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Fixes initial weights and data order."""
    steps: int = Field(1000, ge=1)
    """Optimizer steps."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the training rows, in place of `steps`, which then follow from them, rounded up."""
    log_every: int = Field(10, ge=1)
    """Steps between points of training figures; no metric is read from the device in between."""
    monitor: list[Literal["tensorboard", "wandb", "mlflow", "jsonl"]] = ["tensorboard"]
    """Where figures go: TensorBoard, Weights & Biases, MLflow, metrics.jsonl; docs/monitoring.md."""
    peak_tflops: float | None = Field(None, gt=0)
    """What a device can do at most, in TFLOP/s, for `train/mfu`; by default what the data sheet of a known one says."""
    evaluate_every: int = Field(0, ge=0)
    """Steps between evaluations on the held-out sets; 0: only at the end."""
    save_every: int = Field(0, ge=0)
    """Steps between checkpoints; 0: only at the end."""
    keep_checkpoints: int = Field(2, ge=1)
    """Newest checkpoints that are kept; saving needs room for one more."""
    keep_best: str | None = None
    """A held-out metric, computed at each save, whose best checkpoint is kept as well: a loss like
    `validation/ce/head_0` (the lowest), or `validation/tokens_per_forward` (the highest)."""
    objective: Literal["cross-entropy", "distill"] = "cross-entropy"
    """What heads after the first learn: the text's tokens, or head 0's own distribution of them."""
    normalize_by: Literal["valid", "selected"] = "valid"
    """Divide each head's loss by its valid targets, or by the selected ones as Rho-1 does."""
    head_coefficients: list[Annotated[float, Field(ge=0)]] | Annotated[float, Field(gt=0, le=1)] | None = None
    """Of the heads' losses: a list, one for each head, or one number c for 1, c, c², …; by default all count alike."""

    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    distill: DistillSettings = DistillSettings()
    selection: SelectionSettings = SelectionSettings()
    reference: ReferenceSettings = ReferenceSettings()
    critic: CriticSettings = CriticSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    @field_validator("head_coefficients", mode="before")
    @classmethod
    def _one_number(cls, given: Any) -> Any:
        """Take a list of one number as that number: the command line makes a list of either."""
        return given[0] if isinstance(given, list) and len(given) == 1 else given

    @model_validator(mode="after")
    def _one_model(self) -> "Settings":
        if self.model.source is not None and self.model.config is not None:
            raise ValueError("model.source and model.config exclude each other: continue from a model, or start one")
        return self

    @model_validator(mode="after")
    def _one_length(self) -> "Settings":
        if self.epochs is not None and "steps" in self.model_fields_set:
            raise ValueError("steps and epochs exclude each other: remove one")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The command line stands before these; what `load_settings` read from YAML arrives as init arguments.
        return env_settings, init_settings
