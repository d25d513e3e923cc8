"""A folder to run the launch scripts in, and a way to call them as a person would."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from forked_script import ForkedScript

ROOT = Path(__file__).parents[2]
LAUNCHER_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder but for ds_configs, which the example settings name: nothing of this checkout's runs enters."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "ds_configs").symlink_to(ROOT / "ds_configs")
    return folder


@pytest.fixture(scope="session")
def call(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Call:
    """Runs a script of this checkout in the workplace, by python or by a launcher that is given as `by`."""

    def run(
        script: str | Path, *arguments: object, by: tuple[object, ...] = (), seconds: float = 280
    ) -> subprocess.CompletedProcess[str]:
        # Without what this process has joined; alone on its threads; and with the packages that these tests import.
        environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
        environment["OMP_NUM_THREADS"] = "1"
        command = [str(part) for part in (*by, ROOT / script, *arguments)]
        logs = tmp_path_factory.mktemp("call")
        out, error = logs / "out", logs / "error"
        process: Any
        if by:
            with out.open("w") as to, error.open("w") as errors_to:
                process = subprocess.Popen(
                    command, cwd=workplace, env=environment, stdout=to, stderr=errors_to, start_new_session=True
                )
        else:
            process = ForkedScript(ROOT / script, command[1:], environment, workplace, out, error)
        try:
            process.wait(seconds)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # the launcher's ranks too
            raise
        return subprocess.CompletedProcess(command, process.returncode, out.read_text(), error.read_text())

    return run


@pytest.fixture(scope="session")
def settings_under(tiny_home: Path, tiny_llama: dict[str, Any]) -> Callable[[Path], dict[str, Any]]:
    """Settings of a tiny rho1-wmtp run under a DeepSpeed configuration, for `train_runs`."""

    def settings(config: Path) -> dict[str, Any]:
        return {
            "algo": "rho1-wmtp",
            "log_every": 1,
            "deepspeed_config": str(config),
            "data": {
                "train": [str(tiny_home / "train.jsonl")],
                "tokenizer": str(tiny_home / "tokenizer"),
                "sequence_length": 32,
                "cache_dir": str(tiny_home / "cache"),
            },
            "model": {"config": tiny_llama},
            "reference": {"source": str(tiny_home / "reference")},
        }

    return settings


@pytest.fixture(scope="session")
def train_runs() -> Callable[[Path, dict[int, dict[str, Any]]], None]:
    """Trains runs, by number of ranks and name, at once, and leaves what each saw in a folder: see split_runs.py."""

    def train(folder: Path, runs: dict[int, dict[str, Any]]) -> None:
        (folder / "runs.json").write_text(json.dumps(runs))
        command = [sys.executable, Path(__file__).with_name("split_runs.py"), folder]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
            try:
                code = process.wait(timeout=900)
            finally:
                with suppress(ProcessLookupError):  # all have ended, as they should
                    os.killpg(process.pid, signal.SIGKILL)
        assert code == 0, (folder / "log").read_text()[-5000:]

    return train


@pytest.fixture(scope="session")
def tiny_run(workplace: Path, call: Call) -> Callable[[str], tuple[Path, str]]:
    """Makes the `--tiny` run of an algorithm once; its folder, and what it printed."""
    made: dict[str, tuple[Path, str]] = {}

    def make(algo: str) -> tuple[Path, str]:
        if algo not in made:
            folder = workplace / "out" / algo
            done = call("launch/train.py", "--tiny", "--algo", algo)  # one after the other, as a newcomer types it
            assert done.returncode == 0, done.stderr[-3000:]
            shutil.copytree(workplace / "runs/tiny" / algo, folder)
            made[algo] = folder, done.stdout
        return made[algo]

    return make
