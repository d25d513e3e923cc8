"""What all runs share: corpus, tokenizer, held-out sets, a reference, and its scores. Each is made once."""

import json
from pathlib import Path
from typing import Any

import yaml

from wmtp_core import UserError
from wmtp_lab.experiment.plan import REFERENCE, REFERENCE_SEED, Plan, run_settings
from wmtp_lab.experiment.processes import ROOT, run_job


def prepare_text(plan: Plan, home: Path) -> None:
    """Make corpus, tokenizer and held-out sets, as far as they are not there yet.

    Raises:
        UserError: a script failed, or the corpus is too small.
    """
    corpus, tokenizer, logs = home / "corpus", home / "tokenizer", home / "logs"
    if not corpus.is_dir():
        arguments = ["--output", str(corpus), "--source", plan.corpus.source, "--seed", str(plan.corpus.seed)]
        if plan.corpus.limit_bytes is not None:
            arguments += ["--limit-bytes", str(plan.corpus.limit_bytes)]
        run_job("corpus", [_script("tools/build_corpus.py"), *arguments], logs / "corpus.log")
    write_generated(corpus / "validation_noisy.jsonl", home / "generated.jsonl")
    if not tokenizer.is_dir():
        arguments = ["--vocab-size", str(plan.corpus.vocabulary), "--output", str(tokenizer)]
        text = str(corpus / "reference.jsonl")
        run_job("tokenizer", [_script("tools/train_tokenizer.py"), "--text", text, *arguments], logs / "tokenizer.log")


def prepare_references(plan: Plan, home: Path) -> None:
    """Train every reference, and score the corpus with it, as far as that is not done yet.

    Raises:
        UserError: a script failed.
    """
    for name in (REFERENCE, *plan.other_references):
        if not (home / name / "model").is_dir():
            run_job(name, train_arguments(reference_config(home, name)), home / "logs" / f"{name}.log")
        users = [arm for arm in plan.arms if plan.arms_with_another.get(arm, REFERENCE) == name]
        if users:
            config = write_config(run_settings(plan, home, users[0], REFERENCE_SEED), home / name / "scoring.yaml")
            log = home / "logs" / f"{name}-scoring.log"
            run_job(f"scoring with {name}", [_script("launch/score.py"), "--config", str(config)], log)


def reference_config(home: Path, name: str) -> Path:
    """Return the path of the configuration of a reference's run."""
    return home / "configs" / f"{name}.yaml"


def train_arguments(config: Path) -> list[str]:
    """Return how a run of launch/train.py is started."""
    return [_script("launch/train.py"), "--config", str(config)]


def write_config(settings: dict[str, Any], file: Path) -> Path:
    """Write settings as the file that `--config` names."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
    return file


def _script(path: str) -> str:
    return str(ROOT / path)


def write_generated(noisy: Path, file: Path) -> None:
    """Return the whole documents that a program wrote, for a held-out set of noise that nobody put there on purpose."""
    with noisy.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    natural = [row for row in rows if [span[2] for span in row["noise"]] == ["natural"]]
    if not natural:
        raise UserError(f"{noisy}: holds no generated files; raise corpus.limit_bytes")
    texts = [json.dumps({"text": row["text"]}, ensure_ascii=False) + "\n" for row in natural]
    file.write_text("".join(texts), "utf-8")
