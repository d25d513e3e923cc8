"""What the tests of training share: one process group, a corpus with noise and rewards, and tiny settings."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

TESTS = Path(__file__).parent
HELPERS = (
    "",
    "core",
    "core/losses",
    "integration",
    "models",
    "models/native",
    "models/training",
    "serve",
    "train",
    "train/checkpoint",
    "train/data",
)
for folder in HELPERS:  # modules that tests import, and processes that they fork
    sys.path.insert(0, str(TESTS / folder))
KINDS = ["hex", "shuffled"]
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # triton reads it when it is imported
os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub reads it when it is imported
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="session")
def tiny_llama() -> dict[str, Any]:
    """`model.config` of a Llama of a few thousand weights."""
    return LLAMA


@pytest.fixture(scope="session")
def processes() -> Iterator[Any]:
    """The mesh of this process as a group of one; torch allows that once a process, so all tests share it."""
    import torch.distributed as dist

    from wmtp_train.ranks.lifecycle import start_processes

    yield start_processes()
    dist.destroy_process_group()
    for name in LAUNCHER_VARIABLES:
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def forks() -> None:
    """The server whose forks have imported everything runs: for tests of what would start one of its own."""
    from ranks import start_server

    start_server()


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Skips where Linux does not allow the namespaces that programs of a model are run in."""
    command = ["unshare", "--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--user", "--map-root-user", "true"]
    try:
        refused = subprocess.run(command, check=False, capture_output=True, text=True).stderr.strip()
    except FileNotFoundError:
        refused = "unshare is not installed"
    if refused:
        pytest.skip(f"no sandbox here: {refused}")


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of train.jsonl, held_out.jsonl, pairs.jsonl, tokenizer/, reference/ and a cache/ that tests share."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    home = tmp_path_factory.mktemp("tiny")
    draw = random.Random(0)
    write_jsonl(home / "train.jsonl", [_document(draw, n) for n in range(60)])
    write_jsonl(home / "held_out.jsonl", [_document(draw, n) for n in range(12)])
    write_jsonl(
        home / "pairs.jsonl", [{"prompt": "rank", "chosen": _code(draw), "rejected": "? " * 9} for _ in range(40)]
    )
    tokenizer = make_tokenizer([_code(draw) for _ in range(50)])
    for folder in (home / "tokenizer", home / "reference"):
        tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    config = LlamaConfig(**{k: v for k, v in LLAMA.items() if k != "model_type"}, vocab_size=len(tokenizer))
    config.initializer_range = 0.2  # far enough from uniform that its losses differ from token to token
    AutoModelForCausalLM.from_config(config).save_pretrained(home / "reference")
    return home


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_tokenizer(texts: list[str], vocab_size: int = 290) -> Any:
    """A byte-level BPE with some merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def _code(draw: random.Random) -> str:
    name, argument = draw.choice("abc"), draw.choice("xyz")
    return f"def {name}({argument}): return {argument}\n"


def _document(draw: random.Random, number: int) -> dict[str, Any]:
    """Good code of reward 1, or broken code of reward 0, with a span of noise; every fifth masks a prompt instead."""
    good = number % 2 == 0
    code = "".join(_code(draw) for _ in range(1 + number % 3))
    code = code if good else code.replace("return", "?? ?")
    if number % 5 == 4:
        return {"prompt": "write: ", "completion": code, "reward": float(good)}
    kind = KINDS[number // 2 % 2]
    noise = "".join(draw.choice("0123456789abcdef" if kind == "hex" else "!$%&/=^~") for _ in range(20))
    return {"text": code + noise, "noise": [[len(code), len(code) + 20, kind]], "reward": float(good)}


@pytest.fixture
def write_deepspeed(tmp_path: Path) -> Callable[..., Path]:
    """Writes a DeepSpeed configuration: by default 4 rows a step, ZeRO stage 1, no clipping (DeepSpeed's own: 1)."""

    def write(name: str = "deepspeed.json", stage: int = 1, **config: Any) -> Path:
        batch = {} if any("batch" in key for key in config) else {"train_batch_size": 4}
        path = tmp_path / name
        # DeepSpeed's own bucket reserves 4 GB in stage 3, and after some trainers a process could not fork any more.
        zero = {"stage": stage, "reduce_bucket_size": 10**6}
        path.write_text(json.dumps({"zero_optimization": zero, "gradient_clipping": 0.0, **batch, **config}))
        return path

    return write


@pytest.fixture
def make_settings(tiny_home: Path, tmp_path: Path, write_deepspeed: Callable[..., Path]) -> Callable[..., Any]:
    """Settings of a run of a few steps; a dict given for a section changes that section's keys only."""
    from wmtp_train.settings.schema import Settings

    def make(output: str = "run", **changes: Any) -> Settings:
        settings: dict[str, Any] = {
            "steps": 3,
            "log_every": 1,
            "output_dir": tmp_path / output,
            "data": {
                "train": [str(tiny_home / "train.jsonl")],
                "evaluate": {"held_out": [str(tiny_home / "held_out.jsonl")]},
                "tokenizer": str(tiny_home / "tokenizer"),
                "sequence_length": 32,
                "cache_dir": tiny_home / "cache",
            },
            "model": {"config": LLAMA, "horizon": 3},
            "optimizer": {"learning_rate": 0.01},
            "reference": {"source": str(tiny_home / "reference")},
        }
        for name, change in changes.items():
            settings[name] = {**settings.get(name, {}), **change} if isinstance(change, dict) else change
        if "deepspeed_config" not in settings:
            settings["deepspeed_config"] = write_deepspeed()
        return Settings(**settings)

    return make
