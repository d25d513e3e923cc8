"""What can happen to a run, done to real processes: who ends how, what is said, and that the run goes on as if not.

docs/faults.md lists what is promised.
"""

import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import yaml

from ranks import FORKS, free_ports, start_server

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
WORLD = 2


class Ended(NamedTuple):
    """How the ranks of a run ended, and what each had said."""

    codes: list[int | None]
    logs: list[str]

    def errors(self) -> list[str]:
        assert not any("Traceback" in log for log in self.logs), self.logs
        lines = [line for log in self.logs for line in log.replace("\r", "\n").splitlines()]
        return [line for line in lines if line.startswith(("error", "stopped"))]


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Callable[..., Ended]]:
    """Runs launch/train.py on every rank; each can have a folder and arguments of its own."""
    import faulty_ranks

    start_server()
    started: list[Any] = []

    def run(
        *arguments: object,
        faults: list[dict[str, Any]] | None = None,
        world: int = WORLD,
        own: dict[int, list[object]] | None = None,
        folders: list[Path] | None = None,
        wait_for: int = WORLD,
        **more: object,
    ) -> Ended:
        place = {"WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_ports(1)[0]}
        place |= {"FAULTS": json.dumps(faults or []), "CACHE": tmp_path / "cache", **more}
        logs = [tmp_path / f"rank{rank}.log" for rank in range(world)]
        team = []
        for rank in range(world):
            command = [str(part) for part in (*arguments, *(own or {}).get(rank, []))]
            environment = {name: str(value) for name, value in {**place, "RANK": rank, "LOCAL_RANK": rank}.items()}
            folder = folders[rank] if folders else tmp_path
            process = FORKS.Process(target=faulty_ranks.train, args=(command, environment, folder, logs[rank]))
            process.start()
            team.append(process)
        started.extend(team)
        end = time.monotonic() + 60  # a minute is the promise
        for process in team[:wait_for]:
            process.join(max(0, end - time.monotonic()))
        return Ended([process.exitcode for process in team], [log.read_text() for log in logs])

    yield run
    for process in started:
        process.kill()
        process.join()


@pytest.fixture
def config(make_settings: Callable[..., Any], tmp_path: Path) -> dict[str, Any]:
    """A run of six steps of two ranks, with a checkpoint every second, and a cache of its own."""
    data = {"cache_dir": tmp_path / "cache"}
    settings = make_settings(algo="random", steps=6, save_every=2, data=data)
    return json.loads(settings.model_dump_json(exclude_unset=True))


@pytest.fixture
def file_of(tmp_path: Path) -> Callable[..., list[object]]:
    """The arguments that name a YAML file with these settings."""

    def write(config: dict[str, Any], name: str = "run") -> list[object]:
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
        return ["--config", tmp_path / f"{name}.yaml"]

    return write


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, bytes]:
    """What the run of `config` leaves; filled by the first test that asks `goes_on`."""
    return {}


RESULTS = ("model/model.safetensors", "evaluation.json", "passages.json")


@pytest.fixture
def goes_on(ranks, config, file_of, tmp_path, undisturbed) -> Callable[[], None]:
    """Resumes the run, which has to end as one that nothing happened to."""

    def resume() -> None:
        if not undisturbed:
            whole = tmp_path / "whole"
            assert ranks(*file_of(config), "--output_dir", whole).codes == [0, 0]
            undisturbed.update({name: (whole / name).read_bytes() for name in RESULTS})
        ended = ranks(*file_of(config), "--resume")
        assert ended.codes == [0, 0], ended.logs
        for name in RESULTS:
            assert (tmp_path / "run" / name).read_bytes() == undisturbed[name], name

    return resume


def checkpoints(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "run/checkpoints").glob("step_*"))


@pytest.mark.parametrize("victim", [0, 1])
def test_the_peers_of_a_killed_rank_end_with_one_line_and_the_run_goes_on(
    ranks, config, file_of, tmp_path, goes_on, victim
):
    ended = ranks(*file_of(config), faults=[{"fault": "kill", "rank": victim, "step": 3}])
    assert (ended.codes[victim], ended.codes[1 - victim]) == (-signal.SIGKILL, 1), ended.logs
    (line,) = ended.errors()
    assert line.startswith(f"error (rank {1 - victim}): lost contact with another process")
    assert "--resume" in line
    assert checkpoints(tmp_path) == ["step_00000002"]
    goes_on()


def test_a_rank_without_memory_says_what_takes_less_and_ends_the_others(ranks, config, file_of, goes_on):
    ended = ranks(*file_of(config), faults=[{"fault": "out_of_memory", "rank": 1, "step": 3}])
    assert ended.codes == [1, 2], ended.logs
    first, second = ended.errors()
    assert "lost contact with another process" in first
    assert second.startswith("error (rank 1): out of memory (CUDA out of memory. Tried to allocate 2.00 GiB): set "), (
        second
    )
    assert "Traceback" not in ended.logs[1]
    goes_on()


def test_a_rank_that_hangs_ends_the_others_when_the_time_is_up(ranks, config, file_of):
    ended = ranks(*file_of(config), faults=[{"fault": "hang", "rank": 1, "step": 3}], wait_for=1, TIMEOUT=3)
    assert ended.codes == [1, None], ended.logs
    assert "lost contact" in ended.errors()[0]


@pytest.mark.parametrize(
    ("faults", "step"),
    [
        ([{"fault": "sigusr1", "rank": 1, "step": 2}], 3),
        ([{"fault": "sigterm", "rank": 0, "step": 2}, {"fault": "sigterm", "rank": 1, "step": 3}], 3),
        ([{"fault": "sigterm", "rank": 0, "step": 0}, {"fault": "sigterm", "rank": 1, "during": "saving"}], 1),
        ([{"fault": "sigusr1", "rank": 1, "during": "preparation"}], 0),
        ([{"fault": "sigterm", "rank": 1, "during": "evaluation"}], 6),
    ],
    ids=["on-one-rank", "at-two-steps", "again-while-saving", "before-the-first-step", "during-the-evaluation"],
)
def test_a_stop_signal_ends_all_ranks_at_one_step_with_a_checkpoint_and_code_75(
    ranks, config, file_of, tmp_path, goes_on, faults, step
):
    config["data"]["workers"] = len(faults) - 1  # launchers signal them, too
    config["save_every"] = 0
    ended = ranks(*file_of(config), faults=faults)
    assert ended.codes == [75, 75], ended.logs
    (line,) = ended.errors()
    assert ended.logs[0].splitlines()[-1] == line
    name = "SIGUSR1" if faults[0]["fault"] == "sigusr1" else "SIGTERM"
    assert line.startswith(f"stopped by {name} after {step} of 6 steps; ")
    assert "the same command with --resume goes on" in line
    assert checkpoints(tmp_path) == ([f"step_{step:08d}"] if step else [])
    assert not (tmp_path / "run/model").exists()
    goes_on()


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_and_names_it(ranks, config, file_of, tmp_path):
    config["log_every"] = 5
    ended = ranks(*file_of(config), faults=[{"fault": "nan", "rank": 1, "step": 2}])
    assert ended.codes == [2, 2], ended.logs
    (line,) = ended.errors()
    assert line.startswith("error: step 3: the loss of head 0 on rank 1 is not finite; the last good checkpoint is ")
    assert checkpoints(tmp_path) == ["step_00000002"]


def test_a_gradient_that_is_not_finite_on_one_rank_stops_all_and_names_the_step(ranks, config, file_of, tmp_path):
    config["log_every"] = 5
    ended = ranks(*file_of(config), faults=[{"fault": "nan_gradient", "rank": 1, "step": 2}])
    assert ended.codes == [2, 2], ended.logs
    (line,) = ended.errors()
    assert line.startswith("error: step 3: the gradient is not finite, though every rank's loss is; the last good ")
    assert checkpoints(tmp_path) == ["step_00000002"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": "many"}, "seed"),
        ({"algo": "rho1"}, "algo is 'rho1'; choose one of"),
        ({"model": {"config": None}}, "neither model.source nor model.config is set"),
        ({"model": {"config": None, "source": "empty"}}, "empty"),
        ({"data": {"tokenizer": "empty"}}, "empty"),
        ({"data": {"train": []}}, "data.train names no file"),
        ({"data": {"train": ["plain.jsonl"]}, "algo": "critic-wmtp"}, "critic-wmtp needs rows with a `reward`"),
        ({"reference": {"source": None}, "algo": "rho1-wmtp"}, "rho1-wmtp compares with a reference"),
        ({"reference": {"source": "empty"}, "algo": "rho1-wmtp"}, "empty"),
        ({"keep_best": "loss"}, "keep_best is 'loss'"),
    ],
    ids=str,
)
def test_what_all_ranks_know_is_said_once(ranks, config, file_of, tmp_path, changes, said):
    (tmp_path / "plain.jsonl").write_text(json.dumps({"text": "no reward " * 50}) + "\n")
    (tmp_path / "empty").mkdir()
    for name, value in changes.items():
        config[name] = {**config.get(name, {}), **value} if isinstance(value, dict) else value
    ended = ranks(*file_of(config))
    assert ended.codes == [2, 2], ended.logs
    (line,) = ended.errors()
    assert line.startswith("error: ")
    assert said in line
    assert not (tmp_path / "run").exists()


def test_what_the_folder_holds_is_refused_once(ranks, config, file_of):
    config["steps"] = 2
    assert ranks(*file_of(config)).codes == [0, 0]
    for arguments, said in [([], "holds a run; --resume it"), (["--resume", "--seed", 8], "saved with seed 0")]:
        ended = ranks(*file_of(config), *arguments)
        assert ended.codes == [2, 2], ended.logs
        (line,) = ended.errors()
        assert said in line


def test_a_rank_with_another_setting_is_refused(ranks, config, file_of, tmp_path):
    ended = ranks(*file_of(config), own={1: ["--optimizer.learning_rate", 0.02]})
    assert ended.codes == [2, 2], ended.logs
    (line,) = ended.errors()
    assert line.startswith("error: settings.optimizer.learning_rate is 0.02 on rank 1 and 0.01 on rank 0; ")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def two_machines(tmp_path: Path, tiny_home: Path, config: dict[str, Any]) -> list[Path]:
    """A folder for each rank, in which the relative paths of `config` lead to files of its own."""
    folders = [tmp_path / "machine0", tmp_path / "machine1"]
    for folder in folders:
        folder.mkdir()
        shutil.copy(tiny_home / "train.jsonl", folder)
    config["data"] |= {"train": ["train.jsonl"], "cache_dir": "cache"}
    return folders


def test_a_rank_with_other_data_is_refused(ranks, config, file_of, two_machines, tmp_path):
    with (two_machines[1] / "train.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    ended = ranks(*file_of(config), folders=two_machines)
    assert ended.codes == [2, 2], ended.logs
    (line,) = ended.errors()
    assert line.startswith("error: data.train.fingerprint.corpus is ")
    assert " on rank 1 and " in line
    assert not (tmp_path / "run").exists()


def test_a_data_file_that_one_rank_lacks_is_named(ranks, config, file_of, two_machines, tmp_path):
    (two_machines[1] / "train.jsonl").unlink()
    ended = ranks(*file_of(config), folders=two_machines)
    assert ended.codes == [2, 2], ended.logs
    (line,) = ended.errors()
    assert line.startswith("error: rank 1: corpus train.jsonl: there is no such file")
    assert not (tmp_path / "run").exists()


def test_a_data_file_that_is_gone_at_the_resumption_is_named(ranks, config, file_of, two_machines):
    config["steps"] = 2
    here = two_machines[0]
    assert ranks(*file_of(config), world=1, folders=[here]).codes == [0]
    (here / "train.jsonl").unlink()
    ended = ranks(*file_of(config), "--resume", "--steps", 6, world=1, folders=[here])
    assert ended.codes == [2], ended.logs
    (line,) = ended.errors()
    assert line.startswith("error: corpus train.jsonl: there is no such file")


def test_packed_rows_that_are_removed_meanwhile_stay_readable(ranks, config, file_of, goes_on):
    ended = ranks(*file_of(config), faults=[{"fault": "lose_cache", "rank": 0, "step": 1}])
    assert ended.codes == [0, 0], ended.logs
    goes_on()  # packs them again


def test_packed_rows_that_are_cut_off_meanwhile_are_found_at_the_next_start(ranks, config, file_of, tmp_path, goes_on):
    config["log_every"] = 1
    ended = ranks(*file_of(config), faults=[{"fault": "truncate_cache", "rank": 0, "step": 3}])
    assert -signal.SIGBUS in ended.codes, ended.logs
    assert not {0, 2, 75} & set(ended.codes)
    ended = ranks(*file_of(config), "--resume")
    assert ended.codes == [2, 2], ended.logs
    (line,) = ended.errors()
    assert f"{tmp_path}/cache" in line
    assert "remove the folder, and it is made again" in line
    shutil.rmtree(tmp_path / "cache")
    goes_on()


def launched_by(name: str) -> tuple[object, ...]:
    program = Path(sys.executable).with_name(name)
    if name == "deepspeed":
        return (program, "--num_gpus", WORLD, "--master_port", free_ports(1)[0])
    return (program, "--nproc-per-node", WORLD, "--master-port", free_ports(1)[0])


@pytest.mark.parametrize(
    ("launcher", "fault", "codes", "said"),
    [
        ("deepspeed", "kill", (1, 247), "error (rank 0): lost contact with another process"),  # rank 0's, or -9
        ("torchrun", "kill", (1,), "error (rank 0): lost contact with another process"),
        ("deepspeed", "sigusr1", (75,), "stopped by SIGUSR1 after 3 of 6 steps; "),
        ("torchrun", "sigterm_to_launcher", (1,), "stopped by SIGTERM after 3 of 6 steps; "),
    ],
)
def test_under_a_launcher(call, config, file_of, tmp_path, launcher, fault, codes, said):
    config["data"]["evaluate"] = {}
    faults = json.dumps([{"fault": fault, "rank": 1, "step": 2}])
    by = ("env", f"FAULTS={faults}", *launched_by(launcher))
    done = call(HERE / "faulty_ranks.py", *file_of(config), by=by)
    assert done.returncode in codes, done.stderr
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.startswith(("error (", "stopped"))]
    assert [line.startswith(said) for line in lines] == [True], done.stderr
    assert "/wmtp_train/" not in done.stderr  # no traceback of ours; torchrun ends with one of its own
    assert not [
        process for process in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(process.info["cmdline"])
    ]
    assert checkpoints(tmp_path) == ["step_00000002"] + ["step_00000003"] * (fault != "kill")
