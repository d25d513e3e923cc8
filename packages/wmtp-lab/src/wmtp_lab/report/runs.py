"""What a finished run left in its folder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from wmtp_core.errors import UserError
from wmtp_lab.report.passage import Passage, read_passage

_UNFINISHED = "name the folder of a finished run (its output_dir), or finish this one with --resume"


class Series(NamedTuple):
    """One TensorBoard tag: values over optimizer steps."""

    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class Run:
    """A finished run: scalars by TensorBoard tag, final held-out metrics by `set/metric[/part]`, passages by set."""

    name: str
    settings: dict[str, Any]
    scalars: dict[str, Series]
    metrics: dict[str, float]
    passages: dict[str, Passage]

    @property
    def algo(self) -> str:
        return str(self.settings["algo"])

    @property
    def steps(self) -> int:
        return max(series.steps[-1] for series in self.scalars.values())

    @property
    def evaluation_sets(self) -> list[str]:
        """The held-out sets, in the order of the settings."""
        return list(dict.fromkeys(metric.split("/")[0] for metric in self.metrics))

    @property
    def noise_kinds(self) -> set[str]:
        """Names of the kinds of noise that the training data or a passage holds."""
        kept = {tag.removeprefix("noise/kept/") for tag in self.scalars if tag.startswith("noise/kept/")}
        return (kept - {"clean"}).union(*(passage.kinds for passage in self.passages.values()))

    def heads(self, tag: str) -> dict[int, Series]:
        """Return the series `tag/head_{h}` by head, those that the run has."""
        return {h: self.scalars[f"{tag}/head_{h}"] for h in _head_numbers(self.scalars, tag)}

    def final_heads(self, metric: str) -> dict[int, float]:
        """Return the final held-out metrics `set/metric/head_{h}` by head."""
        return {h: self.metrics[f"{metric}/head_{h}"] for h in _head_numbers(self.metrics, metric)}

    def final(self, metric: str) -> dict[str, float]:
        """Return a final held-out metric by set, for the sets that have it."""
        found = {name: self.metrics.get(f"{name}/{metric}") for name in self.evaluation_sets}
        return {name: value for name, value in found.items() if value is not None}


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders, and name each run by as much of its path as tells it from the others.

    Raises:
        UserError: a folder is missing, is named twice or is no finished run, or a file in it cannot be read.
    """
    paths = [folder.resolve() for folder in folders]
    for folder, path in zip(folders, paths, strict=True):
        if paths.count(path) > 1:
            raise UserError(f"{folder}: named twice; name each run once")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return [_read_run(folder, "/".join(path.parts[-depth:])) for folder, path in zip(folders, paths, strict=True)]


def _read_run(folder: Path, name: str) -> Run:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; {_UNFINISHED}")
    settings = _read_json(folder / "settings.json")
    if not isinstance(settings.get("algo"), str):
        raise UserError(f"{folder / 'settings.json'}: names no algo; {_UNFINISHED}")
    scalars = _read_scalars(folder / "tensorboard")
    metrics = _read_json(folder / "evaluation.json")
    for metric, value in metrics.items():
        if not isinstance(value, int | float):
            raise UserError(
                f"{folder / 'evaluation.json'}: {metric} is {value!r}, not a number; evaluate the run again"
            )
    passages = {}
    for held_out, content in _read_json(folder / "passages.json").items():
        try:
            passages[held_out] = read_passage(held_out, content)
        except UserError as error:
            raise UserError(f"{folder / 'passages.json'}: {error}") from None
    return Run(name, settings, scalars, metrics, passages)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; {_UNFINISHED}") from None
    except ValueError as error:
        raise UserError(f"{file}: is not JSON ({error}); delete it and run the last step again") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds a {type(content).__name__}, not an object; {_UNFINISHED}")
    return content


def _read_scalars(folder: Path) -> dict[str, Series]:
    if not any(folder.glob("events.out.tfevents.*")):
        raise UserError(f"{folder}: holds no TensorBoard events; {_UNFINISHED}")
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    scalars = {}
    for tag in events.Tags()["scalars"]:
        points = events.Scalars(tag)
        scalars[tag] = Series([point.step for point in points], [point.value for point in points])
    if "ce/head_0" not in scalars:
        raise UserError(f"{folder}: the events hold no losses (ce/head_0); {_UNFINISHED}")
    return scalars


def _head_numbers(names: dict[str, Any], prefix: str) -> list[int]:
    start = f"{prefix}/head_"
    return sorted(int(name.removeprefix(start)) for name in names if name.startswith(start))
