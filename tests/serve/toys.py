"""Small trained models with sequential heads, and their exports, made by the scripts of `launch/` and `tools/`.

Each is made once, in `runs/serve`: a corpus, a tokenizer, then a model for each family.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
HOME = ROOT / "runs" / "serve"
VENV = ROOT / ".venv-serve"
STEPS, PROMPTS, PROMPT_TOKENS = 450, 8, 48
_CONFIG = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
FAMILIES = {"llama": {}, "qwen2": {}, "qwen3": {"head_dim": 32}}


def run(*command: object) -> None:
    """Run a script of this repository; what it printed is shown if it fails."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def model(family: str) -> Path:
    """A trained model folder of a family: a trunk of four layers and one module for the depths 1 to 3."""
    corpus, tokenizer = HOME / "corpus", HOME / "tokenizer"
    if not corpus.is_dir():
        run("tools/build_corpus.py", "--output", corpus, "--limit-bytes", 2_500_000)
    if not tokenizer.is_dir():
        text = corpus / "reference.jsonl"
        run("tools/train_tokenizer.py", "--text", text, "--vocab-size", 2048, "--output", tokenizer)
    folder = HOME / family
    if not (folder / "model").is_dir():
        _write_config(family)
        run("launch/train.py", "--config", HOME / f"{family}.yaml", "--resume")
    return folder / "model"


def export(family: str, form: str) -> Path:
    """An export of the family's model, made anew."""
    source, folder = model(family), HOME / f"{family}-{form}"
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


def _write_config(family: str) -> None:
    deepspeed = HOME / "deepspeed.json"
    deepspeed.write_text(
        json.dumps({"train_batch_size": 12, "gradient_clipping": 1.0, "zero_optimization": {"stage": 0}})
    )
    settings = {
        "algo": "mtp-baseline",
        "steps": STEPS,
        "evaluate_every": STEPS,
        "output_dir": str(HOME / family),
        "deepspeed_config": str(deepspeed),
        "data": {
            "train": [str(HOME / "corpus" / "reference.jsonl")],
            "evaluate": {"clean": [str(HOME / "corpus" / "validation.jsonl")]},
            "evaluation_rows": 64,
            "tokenizer": str(HOME / "tokenizer"),
            "sequence_length": 128,
            "cache_dir": str(HOME / "cache"),
        },
        "model": {"config": {"model_type": family, **_CONFIG, **FAMILIES[family]}, "head_kind": "sequential"},
        "optimizer": {"learning_rate": 0.003, "warmup_steps": 45, "final_fraction": 0.0},
    }
    (HOME / f"{family}.yaml").write_text(yaml.safe_dump(settings))
