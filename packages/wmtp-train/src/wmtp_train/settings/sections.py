"""The sections of a run's settings: data, model, optimizer, and what each algorithm and script has of its own."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True, allow_inf_nan=False)


class DataSettings(BaseModel):
    """What is read, and how it is packed."""

    model_config = STRICT

    train: list[str] = []
    """Training files: jsonl, json, txt, parquet, Megatron's bin; paths, folders or globs."""
    evaluate: dict[str, list[str]] = {}
    """Held-out sets by name, each a list of files like `train`."""
    columns: dict[str, str] = {}
    """Where documents stand under other names: ours to the files', like `{text: content}`; then no others are read."""
    tokenizer: str | None = None
    """Folder or name of the tokenizer; by default the model's own."""
    chat_template: Path | None = None
    """Jinja file that renders conversations; by default the tokenizer's own template."""
    chat_template_arguments: dict[str, Any] = {}
    """What the template is given beside messages and tools, like `{enable_thinking: false}`."""
    sequence_length: int = Field(1024, ge=2)
    """Tokens in a row, S."""
    packing: bool = True
    """Put documents end to end into rows; false: one document a row, for models in which they would see each other."""
    shuffle_seed: int = Field(0, ge=0, lt=2**31)
    """Fixes the packing. Apart from `seed`, so that runs of several seeds share one scored corpus."""
    cache_dir: Path = Path("runs/cache")
    """Where packed rows are kept, so that the next start is instant."""
    evaluation_rows: int | None = Field(None, ge=1)
    """Evaluate on N evenly spaced rows of each held-out set; by default on all."""
    tokenise_processes: int | None = Field(None, ge=1)
    """Processes that tokenise a corpus the first time; by default one."""
    workers: int = Field(0, ge=0)
    """Processes that read batches ahead, per rank; 0 reads in the training process."""


class ModelSettings(BaseModel):
    """The policy: an existing model, or a configuration to start from scratch."""

    model_config = STRICT

    source: str | None = None
    """A WMTP folder; folder or name of a Hugging Face causal language model; a GGUF file or its folder; or a folder of
    the published multi-token format (params.json, consolidated.pth)."""
    config: dict[str, Any] | None = None
    """A Hugging Face configuration like `{model_type: llama, hidden_size: 256}`; the vocabulary is the tokenizer's."""
    horizon: int = Field(4, ge=1, le=32)
    """Heads H, the number of future tokens that are predicted."""
    head_kind: Literal["layer", "sequential", "mlp", "linear"] = "layer"
    """What heads after the first are: decoder layers beside the trunk's last one; modules that each read the head
    before it and one more token (DeepSeek-V3); or on the final hidden state a residual block (Medusa) or a matrix."""
    shared_module: bool = True
    """Apply one sequential module again at every depth, as servers do; false: a module for each depth."""
    head_block: Literal["trunk", "qwen2"] = "trunk"
    """The decoder layer in sequential modules: like the trunk's last one; or Qwen2's, which a MiMo drafter has."""
    detach_heads: bool = False
    """Let the losses of heads after the first move these heads alone: not trunk, embedding, final norm or
    unembedding, which learn by head 0's loss."""
    train: Literal["all", "heads", "lora"] = "all"
    """What learns: everything; only the heads after the first (and the value head), beside a trunk that stays as it is;
    or the heads in full and the trunk through low-rank adapters, which model/ holds multiplied out."""
    lora_rank: int = Field(16, ge=1)
    """Rank of the adapters of `train: lora`."""
    lora_alpha: int = Field(32, ge=1)
    """Adapters are scaled by lora_alpha / lora_rank."""
    attention: Literal["auto", "sdpa", "flex", "flash"] = "auto"
    """How attention is computed, the reference's too: by FlashAttention over rows laid end to end, by flex_attention's
    blocks, or by torch's SDPA with a mask of B·S²; auto takes the first of them that device, dtype and family have."""
    gradient_checkpointing: bool = False
    """Recompute activations of trunk layers and heads in the backward: less memory, more time."""
    compile: bool = False
    """`torch.compile` each layer of the trunk and each head, whole: faster steps after a slow first one."""
    liger: bool = False
    """Take norm, rotary embedding and MLP from liger-kernel, on an accelerator and for the families that it knows."""


Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSettings(BaseModel):
    """AdamW with linear warm-up."""

    model_config = STRICT

    learning_rate: float = Field(3e-4, gt=0)
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Adam's decay rates."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled decay of matrices; vectors (norms, biases) have none."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up."""
    final_fraction: float = Field(0.1, ge=0, le=1)
    """The cosine ends at this fraction of the peak."""


class DistillSettings(BaseModel):
    """What `objective: distill` lets later heads learn."""

    model_config = STRICT

    divergence: Literal["forward-kl", "reverse-kl", "total-variation"] = "forward-kl"
    """How far a head is from head 0: KL(p‖q), KL(q‖p), or the share of drafts that sampling would reject."""
    cross_entropy: float = Field(0.0, ge=0, lt=1)
    """Share of the text's own cross-entropy in these losses; the rest is the divergence."""


class SelectionSettings(BaseModel):
    """The top k of rho1-wmtp and of the random control."""

    model_config = STRICT

    k_percent: float = Field(0.6, gt=0, le=1)
    """Fraction of each later head's valid targets that is kept."""
    scope: Literal["batch", "sequence"] = "batch"
    """Compare over the micro-batch of all ranks, or within each row."""
    warmup_steps: int = Field(0, ge=0)
    """Steps during which every prediction counts, as in mtp-baseline, before the selection begins."""
    from_head: int = Field(1, ge=0, le=1)
    """The first head that selects: 1 lets head 0 learn every token, 0 selects there too, as Rho-1 itself does."""


class ReferenceSettings(BaseModel):
    """The frozen next-token model that predictions are compared with."""

    model_config = STRICT

    source: str | None = None
    """A Hugging Face causal language model, or a WMTP folder, whose head 0 is taken."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the reference computes in; its losses are float32 in either."""
    sharded: bool = False
    """Split its parameters over the processes by ZeRO-3: less memory on each, and the same losses; but every forward
    gathers the parameters again, layer by layer."""
    scores: Path | None = None
    """Folder that wmtp score writes; training with it loads no reference model."""
    scores_dtype: Literal["float32", "float16"] = "float32"
    """What scores are stored in; float16 halves them, and puts each within 2^-11 of itself or 2^-25 nats."""


class CriticSettings(BaseModel):
    """critic-wmtp: the value head and how its estimates weight the heads."""

    model_config = STRICT

    discount: float = Field(0.95, ge=0, le=1)
    """δ_t = V_t − discount·V_{t−1}."""
    temperature: float = Field(0.7, gt=0)
    """Of the softmax over heads."""
    advantage: Literal["delta", "gae"] = "delta"
    """What a token added itself, or summed over what follows."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """λ of `advantage: gae`."""
    transform: Literal["softmax", "exp"] = "softmax"
    """Softmax over heads, or exp of whitened advantages."""
    beta: float = Field(1.0, gt=0)
    """Temperature of `transform: exp`."""
    clip: float = Field(5.0, gt=0)
    """Largest weight of `transform: exp` before rescaling."""
    value_warmup_steps: int = Field(100, ge=0)
    """Steps during which only the value head uses the rewards, and all heads weigh alike."""
    value_coefficient: float = Field(0.1, gt=0)
    """Weight of the value loss in the total loss."""
    return_lambda: float = Field(1.0, ge=0, le=1)
    """λ of the returns that the value head regresses on; 1 is the reward itself, less reaches back 1/(1−λ) tokens."""
    gradient_to_trunk: bool = False
    """Let the value loss train the trunk too."""


class EvaluationSettings(BaseModel):
    """What wmtp evaluate does beside the held-out sets."""

    model_config = STRICT

    model: str | None = None
    """The model; by default the run's own, `output_dir/model`. For another one name an `output_dir` of its own too."""
    humaneval: bool = False
    """HumanEval's pass@k. This RUNS PROGRAMS THAT THE MODEL WROTE, `humaneval_samples` for each of 164 problems, in a
    sandbox without network, files, privileges or other processes; where that cannot be built, nothing runs."""
    humaneval_samples: int = Field(1, ge=1)
    """Programs for each problem, n; pass@k is given for those of k = 1, 10, 100 that are no more."""
    temperature: float | None = Field(None, gt=0)
    """Draw the programs at this temperature (and top_p 0.95); greedy without."""
    max_new_tokens: int = Field(512, ge=1)
    """The longest program, in tokens."""
    seconds: float = Field(10, gt=0)
    """The longest that a program may run, in seconds."""
    megabytes: int = Field(1024, ge=64)
    """The most memory that a program may map, in MB."""
    tasks: list[str] = []
    """Tasks of lm-eval, by name."""
    task_folder: Path | None = None
    """Folder of the task files that `tasks` name; by default lm-eval's own, for which it downloads data."""
    task_limit: int | None = Field(None, ge=1)
    """Use so many examples of each task; by default all."""
    batch_size: int = Field(8, ge=1)
    """Texts that a benchmark scores or writes together."""
