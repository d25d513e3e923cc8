"""What a saved WMTP model says about itself."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from wmtp_core import UserError
from wmtp_models.heads import ParallelHeads, require_head_kind

FORMAT = 2
"""Of a saved folder's tensor names: 1 had the heads inside the trunk's last layer."""


class MtpConfig(PreTrainedConfig):
    """Configuration of `MtpForCausalLM`.

    Args:
        trunk: configuration of the plain causal LM, or its dictionary with a `model_type`.
        horizon: number of heads H, at least 1.
        head_kind: what heads ≥ 1 are: `layer`, decoder layers beside the trunk's last one; `sequential`, modules that
            each read the head before it and one more token; or on the final hidden state `mlp`, a residual block each,
            or `linear`, a matrix each.
        shared_module: whether sequential heads are one module, applied again at every depth, or one module each.
        head_block: the decoder layer in sequential heads that are new: `trunk`, like the trunk's last one, or `qwen2`.
        native: of sequential heads that the source shipped: how it names and builds them, the attributes of
            `NativeModules`; None: the heads are new.
        isolates_documents: whether the trunk keeps documents of one row apart where position ids restart.
        value_head: whether the policy carries a value head.
        value_gradient_to_trunk: whether the value head's loss also trains the trunk.
        generation: the plain model's generation_config.json: its stop tokens, how it samples; None: as the trunk's
            configuration has it.
        format_version: of the folder's tensor names.
    """

    model_type = "wmtp"
    sub_configs = {"trunk": AutoConfig}  # noqa: RUF012 (transformers' own convention)
    has_no_defaults_at_init = True

    def __init__(
        self,
        trunk: PreTrainedConfig | dict[str, Any] | None = None,
        horizon: int = 4,
        head_kind: str = ParallelHeads.kind,
        shared_module: bool = True,
        head_block: str = "trunk",
        native: dict[str, Any] | None = None,
        isolates_documents: bool = True,
        value_head: bool = False,
        value_gradient_to_trunk: bool = False,
        generation: dict[str, Any] | None = None,
        format_version: int = FORMAT,
        **kwargs: Any,
    ) -> None:
        if horizon < 1:
            raise UserError(f"horizon is {horizon}: it must be at least 1 (1 is plain next-token prediction)")
        require_head_kind(head_kind)
        if head_block not in ("trunk", "qwen2"):
            raise UserError(f"head_block is {head_block!r}: choose trunk or qwen2")
        if head_block != "trunk" and (head_kind != "sequential" or native is not None):
            raise UserError(f"head_block is {head_block}, which is for new sequential heads: set it to trunk")
        if format_version > FORMAT:
            raise UserError(
                f"format_version is {format_version}, and formats up to {FORMAT} are known: update wmtp-models"
            )
        # The base class resets the attention implementation of every sub-configuration it finds: it must find none.
        super().__init__(**kwargs)
        self.trunk: Any = AutoConfig.for_model(**trunk) if isinstance(trunk, dict) else trunk
        self.horizon = horizon
        self.head_kind = head_kind
        self.shared_module = shared_module
        self.head_block = head_block
        self.native = native
        self.isolates_documents = isolates_documents
        self.value_head = value_head
        self.value_gradient_to_trunk = value_gradient_to_trunk
        self.generation = generation
        self.format_version = format_version

    @property
    def text(self) -> Any:
        """The trunk's configuration, or where it also sees or hears, that of its part for text."""
        return self.trunk.get_text_config()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read a saved configuration; one that does not say its format is of the first."""
        return super().from_dict({"format_version": 1, **config_dict}, **kwargs)
