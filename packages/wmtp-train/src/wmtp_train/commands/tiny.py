"""What a `--tiny` run needs before it: a small corpus, its tokenizer, and a reference trained for a moment."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from wmtp_core import UserError
from wmtp_train.settings.command_line import tiny_output
from wmtp_train.settings.schema import Settings

ROOT = Path(__file__).parents[5]  # of the checkout, whose tools are run
TINY_CONFIG = ROOT / "launch/configs/tiny.yaml"
_HOME = Path("runs/tiny")


def prepare_tiny(settings: Settings, with_reference: bool) -> None:
    """Make what is not there yet, by the same scripts that a person would call.

    Args:
        settings: of the run.
        with_reference: also train a reference, for algorithms that compare with one.
    """
    if settings.output_dir == tiny_output(settings.algo) and not settings.resume:
        shutil.rmtree(settings.output_dir, ignore_errors=True)  # nobody named it: a tiny run starts anew
    corpus, tokenizer = _HOME / "corpus", _HOME / "tokenizer"
    if not corpus.is_dir():
        _call("tools/build_corpus.py", "--output", corpus, "--limit-bytes", 400_000)
    if not tokenizer.is_dir():
        text = corpus / "reference.jsonl"
        _call("tools/train_tokenizer.py", "--text", text, "--vocab-size", 512, "--output", tokenizer)
    reference = _HOME / "reference"
    if with_reference and not (reference / "model").is_dir():
        _call(
            *("launch/train.py", "--tiny", "--algo", "mtp-baseline", "--model.horizon", 1),
            *("--data.train", f'["{corpus}/reference.jsonl"]', "--output_dir", reference),
        )


def _call(script: str, *arguments: object) -> None:
    # Without the launcher's variables: what is called here is one process alone.
    ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NUM_TASKS")
    environment = {
        name: value for name, value in os.environ.items() if name not in ours and not name.startswith("TORCHELASTIC_")
    }
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    if code := subprocess.run(command, env=environment, check=False).returncode:
        raise UserError(f"--tiny: {script} ended with exit code {code}; its own message stands above")
