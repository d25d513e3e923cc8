"""Small trained models with sequential heads, and their exports, made by the scripts of `launch/` and `tools/`.

Each is made once, in `runs/serve`: a corpus, a tokenizer, then a model for each family.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
HOME = ROOT / "runs" / "serve"
VENV = ROOT / ".venv-serve"
STEPS, PROMPTS, PROMPT_TOKENS = 450, 32, 48
_CONFIG = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
TOYS: dict[str, dict[str, Any]] = {
    "llama": {"config": {"model_type": "llama"}},
    "qwen2": {"config": {"model_type": "qwen2"}},
    "qwen3": {"config": {"model_type": "qwen3", "head_dim": 32}},
    "qwen3-qwen2-block": {"config": {"model_type": "qwen3", "head_dim": 32}, "head_block": "qwen2"},
}
"""The `model` settings by name."""


def run(*command: object) -> None:
    """Run a script of this repository; what it printed is shown if it fails."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def model(toy: str) -> Path:
    """A trained model folder: a trunk of four layers and one module for the depths 1 to 3."""
    corpus, tokenizer = HOME / "corpus", HOME / "tokenizer"
    if not corpus.is_dir():
        run("tools/build_corpus.py", "--output", corpus, "--limit-bytes", 2_500_000)
    if not tokenizer.is_dir():
        text = corpus / "reference.jsonl"
        run("tools/train_tokenizer.py", "--text", text, "--vocab-size", 2048, "--output", tokenizer)
    folder = HOME / toy
    if not (folder / "model").is_dir():
        _write_config(toy)
        run("launch/train.py", "--config", HOME / f"{toy}.yaml", "--resume")
    return folder / "model"


def export(toy: str, form: str) -> Path:
    """An export of a model, made anew."""
    source, folder = model(toy), HOME / f"{toy}-{form}"
    shutil.rmtree(folder, ignore_errors=True)
    run("launch/export.py", "--model", source, "--format", form, "--output", folder)
    return folder


def prompts() -> list[list[int]]:
    """The beginnings of held-out files, as tokens."""
    from wmtp_models import load_tokenizer

    encode = load_tokenizer(HOME / "tokenizer")
    texts = [json.loads(line)["text"] for line in (HOME / "corpus" / "validation.jsonl").read_text().splitlines()]
    encoded = [encode(text)["input_ids"][:PROMPT_TOKENS] for text in texts]
    return [tokens for tokens in encoded if len(tokens) == PROMPT_TOKENS][:PROMPTS]


def _write_config(toy: str) -> None:
    deepspeed = HOME / "deepspeed.json"
    deepspeed.write_text(
        json.dumps({"train_batch_size": 12, "gradient_clipping": 1.0, "zero_optimization": {"stage": 0}})
    )
    settings = {
        "algo": "mtp-baseline",
        "steps": STEPS,
        "evaluate_every": STEPS,
        "output_dir": str(HOME / toy),
        "deepspeed_config": str(deepspeed),
        "data": {
            "train": [str(HOME / "corpus" / "reference.jsonl")],
            "evaluate": {"clean": [str(HOME / "corpus" / "validation.jsonl")]},
            "evaluation_rows": 64,
            "tokenizer": str(HOME / "tokenizer"),
            "sequence_length": 128,
            "cache_dir": str(HOME / "cache"),
        },
        "model": {**TOYS[toy], "config": _CONFIG | TOYS[toy]["config"], "head_kind": "sequential"},
        "optimizer": {"learning_rate": 0.003, "warmup_steps": 45, "final_fraction": 0.0},
    }
    (HOME / f"{toy}.yaml").write_text(yaml.safe_dump(settings))
