"""The plan of an experiment: its arms, its seeds, and what all of them share."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wmtp_core import UserError

_STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)

REFERENCE = "reference"
"""What the reference's run is called among the results."""
REFERENCE_SEED = 0
"""Of the references' initial weights and data order; no arm has it, or it would begin where its reference did."""
_SHARED = ("steps", "evaluate_every", "data", "model.source", "model.config")
"""Settings in which no arm may differ, or there would be no equal tokens, text or initial weights to compare at."""


class CorpusPlan(BaseModel):
    """What tools/build_corpus.py and tools/train_tokenizer.py are told."""

    model_config = _STRICT

    source: Literal["installed", "wheels"] = "installed"
    limit_bytes: int | None = Field(None, ge=1)
    """About how many bytes of training text; by default all there are."""
    seed: int = 0
    """Of the noise."""
    vocabulary: int = Field(ge=257)
    """Tokens of the tokenizer, which learns from the clean text of the reference."""


class DecodingPlan(BaseModel):
    """How accepted drafts are counted, with `wmtp_models.generate` on clean held-out text."""

    model_config = _STRICT

    prompts: int = Field(ge=1)
    prompt_tokens: int = Field(ge=1)
    new_tokens: int = Field(ge=2)
    """Per prompt."""


class Plan(BaseModel):
    """A YAML file. What is a mapping of settings here holds keys of `launch/train.py --help`."""

    model_config = _STRICT

    corpus: CorpusPlan
    deepspeed: dict[str, Any]
    """DeepSpeed's JSON, of every run."""
    train: dict[str, Any]
    """Settings that all arms share."""
    reference: dict[str, Any]
    """Settings in which the reference's run differs from `train`: it is a next-token model on clean text."""
    other_references: dict[str, dict[str, Any]] = {}
    """More references by name, to learn what a reference's quality does; each is scored as the first one is."""
    arms_with_another: dict[str, str] = {}
    """The arms that use one of `other_references`, and which."""
    arms: dict[str, dict[str, Any]] = Field(min_length=2)
    """By name, the settings in which an arm differs from `train`."""
    baseline: str
    """The arm that all others are compared with, seed by seed."""
    also_compare: list[tuple[str, str]] = []
    """More pairs of arms."""
    seeds: list[int] = Field(min_length=1)
    """Each arm is trained once with each, from 1 on: it fixes initial weights and data order."""
    decoding: DecodingPlan
    timed_steps: int = Field(16, ge=1)
    """Rounds of the interleaved measurement of an optimizer step."""
    processes: int = Field(1, ge=1)
    """Runs side by side. Where there are GPUs they get one each, in turn."""

    @model_validator(mode="after")
    def _consistent(self) -> "Plan":
        for arm in (self.baseline, *self.arms_with_another, *(arm for pair in self.also_compare for arm in pair)):
            if arm not in self.arms:
                raise ValueError(f"{arm!r} is to be compared, but is none of the arms {', '.join(self.arms)}")
        for place, (arm, other) in enumerate(self.also_compare):
            if other == self.baseline or arm == other or (arm, other) in self.also_compare[:place]:
                raise ValueError(f"also_compare: {arm} with {other} is compared anyway, or with itself; remove it")
        references = {REFERENCE: self.reference, **self.other_references}
        for name in (*self.arms, *self.other_references):
            if name == REFERENCE or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise ValueError(f"{name!r}: names a folder: use letters, digits, '.', '_', '-'; not {REFERENCE!r}")
        if unknown := set(self.arms_with_another.values()) - set(self.other_references):
            raise ValueError(f"arms_with_another: {unknown.pop()!r} is none of other_references")
        if len(set(self.seeds)) < len(self.seeds) or REFERENCE_SEED in self.seeds:
            raise ValueError(f"seeds {self.seeds}: one stands twice, or is {REFERENCE_SEED}, the reference's own")
        if not self.train.get("evaluate_every"):
            raise ValueError("train: set evaluate_every, in steps: there is no curve without evaluations")
        ours = set(_paths(run_settings(self, Path(), self.baseline, REFERENCE_SEED, only_ours=True)))
        for name, given in {"train": self.train, **references, **self.arms}.items():
            if taken := sorted(ours & set(_paths(given))):
                raise ValueError(f"{name}: {taken[0]} is set by the experiment itself; remove it")
        for arm, given in self.arms.items():
            for path in _paths(given):
                if any(path == shared or path.startswith(f"{shared}.") for shared in _SHARED):
                    raise ValueError(f"{arm}: {path} is what all arms have in common; set it under train")
        return self


def read_plan(file: Path) -> Plan:
    """Read a plan.

    Raises:
        UserError: no such file, not YAML, or not a plan; in one line.
    """
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
        return Plan.model_validate(content)
    except OSError as error:
        raise UserError(f"{file}: {str(error.strerror).lower()}; wmtp_lab/plans holds examples") from error
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not YAML: {' '.join(str(error).split())}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text; save it as such") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "plan"
        raise UserError(f"{file}: {where}: {first['msg'].removeprefix('Value error, ')}; fix it") from error


def run_settings(plan: Plan, home: Path, arm: str, seed: int, only_ours: bool = False) -> dict[str, Any]:
    """Return the settings of a run for `launch/train.py --config`; `only_ours`: those that the plan cannot set."""
    reference = home / plan.arms_with_another.get(arm, REFERENCE)
    ours = {
        "seed": seed,
        "output_dir": str(home / "runs" / arm / f"seed-{seed}"),
        "deepspeed_config": str(home / "deepspeed.json"),
        "resume": True,
        "data": {
            "train": [str(home / "corpus/train.jsonl")],
            "evaluate": {
                "clean": [str(home / "corpus/validation.jsonl")],
                "noisy": [str(home / "corpus/validation_noisy.jsonl")],
                "generated": [str(home / "generated.jsonl")],
            },
            "tokenizer": str(home / "tokenizer"),
            "cache_dir": str(home / "cache"),
        },
        "reference": {"source": str(reference / "model"), "scores": str(reference / "scores")},
    }
    return ours if only_ours else merged(merged(plan.train, plan.arms[arm]), ours)


def reference_settings(plan: Plan, home: Path, name: str = REFERENCE) -> dict[str, Any]:
    """Return the settings of a reference's run: a next-token model of the arms' own shape on clean text."""
    own = {REFERENCE: plan.reference, **plan.other_references}[name]
    settings = merged(run_settings(plan, home, plan.baseline, REFERENCE_SEED), own)
    of_reference = {
        "algo": "mtp-baseline",
        "output_dir": str(home / name),
        "data": {"train": [str(home / "corpus/reference.jsonl")]},
        "model": {"horizon": 1},
        "reference": {"source": None, "scores": None},
    }
    return merged(settings, of_reference)


def require_same_plan(plan: Plan, file: Path) -> None:
    """Make sure that what was measured by the plan that was written there still counts.

    Arms, references and seeds may be added. Decoding, rounds of timing, further comparisons and processes are free.

    Raises:
        UserError: the folder was begun with another plan.
    """
    if not file.exists():
        return
    before, now = json.loads(file.read_text("utf-8")), plan.model_dump(mode="json")
    for free in ("decoding", "timed_steps", "also_compare", "processes"):
        now[free] = before[free]
    for growing, known in (("arms", "arms"), ("other_references", "other_references"), ("arms_with_another", "arms")):
        now[growing] = {name: value for name, value in now[growing].items() if name in before.get(known, {})}
    now["seeds"] = [seed for seed in before["seeds"] if seed in now["seeds"]]
    old, new = dict(_leaves(before)), dict(_leaves(now))
    for path in (*new, *old):
        if old.get(path) != new.get(path):
            raise UserError(
                f"--output {file.parent}: was begun with {'.'.join(path)} = {old.get(path)!r}, and the plan says "
                f"{new.get(path)!r} now; name another folder, or delete this one"
            )


def merged(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return settings after changes to them, key by key."""
    result = dict(settings)
    for key, value in changes.items():
        before = result.get(key)
        result[key] = merged(before, value) if isinstance(value, dict) and isinstance(before, dict) else value
    return result


def _paths(settings: dict[str, Any]) -> Iterator[str]:
    return (".".join(path) for path, _ in _leaves(settings))


def _leaves(settings: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Return every value that is no mapping, or an empty one, with the keys that lead to it."""
    if isinstance(settings, dict) and settings:
        for key, value in settings.items():
            yield from _leaves(value, (*path, key))
    else:
        yield path, settings
