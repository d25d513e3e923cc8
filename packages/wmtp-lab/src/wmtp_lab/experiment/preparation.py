"""What all runs share: corpus, tokenizer, held-out sets, a reference, and its scores. Each is made once."""

import json
from pathlib import Path
from typing import Any

import yaml

from wmtp_core import UserError
from wmtp_lab.experiment.plan import REFERENCE, REFERENCE_SEED, Plan, run_settings
from wmtp_lab.experiment.processes import ROOT, Job, run_job


def prepare_text(plan: Plan, home: Path) -> None:
    """Make corpus, tokenizer and held-out sets, as far as they are not there yet.

    Raises:
        UserError: a script failed, or the corpus is too small.
    """
    corpus, tokenizer, limit = home / "corpus", home / "tokenizer", plan.corpus.limit_bytes
    if not corpus.is_dir():
        given = {"--output": corpus, "--source": plan.corpus.source, "--seed": plan.corpus.seed}
        run_job(_job("corpus", home, "tools/build_corpus.py", given | ({"--limit-bytes": limit} if limit else {})))
    write_generated(corpus / "validation_noisy.jsonl", home / "generated.jsonl")
    if not tokenizer.is_dir():
        given = {"--text": corpus / "reference.jsonl", "--vocab-size": plan.corpus.vocabulary, "--output": tokenizer}
        run_job(_job("tokenizer", home, "tools/train_tokenizer.py", given))


def prepare_references(plan: Plan, home: Path) -> None:
    """Train every reference, and score the corpus with it, as far as that is not done yet.

    Raises:
        UserError: a script failed.
    """
    for name in (REFERENCE, *plan.other_references):
        if not (home / name / "model").is_dir():
            run_job(train_job(name, home, reference_config(home, name)))
        users = [arm for arm in plan.arms if plan.arms_with_another.get(arm, REFERENCE) == name]
        if users:
            config = write_config(run_settings(plan, home, users[0], REFERENCE_SEED), home / name / "scoring.yaml")
            run_job(_job(f"{name}-scoring", home, "launch/score.py", {"--config": config}))


def reference_config(home: Path, name: str) -> Path:
    """Return the path of the configuration of a reference's run."""
    return home / "configs" / f"{name}.yaml"


def train_job(name: str, home: Path, config: Path) -> Job:
    """Return a run of launch/train.py."""
    return _job(name, home, "launch/train.py", {"--config": config})


def write_config(settings: dict[str, Any], file: Path) -> Path:
    """Write settings as the file that `--config` names."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")
    return file


def _job(name: str, home: Path, script: str, given: dict[str, Any]) -> Job:
    arguments = [str(word) for pair in given.items() for word in pair]
    return Job(name, [str(ROOT / script), *arguments], home / "logs" / f"{name}.log")


def write_generated(noisy: Path, file: Path) -> None:
    """Return the whole documents that a program wrote, for a held-out set of noise that nobody put there on purpose."""
    with noisy.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    natural = [row for row in rows if [span[2] for span in row["noise"]] == ["natural"]]
    if not natural:
        raise UserError(f"{noisy}: holds no generated files; raise corpus.limit_bytes")
    texts = [json.dumps({"text": row["text"]}, ensure_ascii=False) + "\n" for row in natural]
    file.write_text("".join(texts), "utf-8")
