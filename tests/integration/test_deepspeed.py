"""Two processes under the real `deepspeed` launcher train what one process trains."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ranks import free_ports

pytestmark = pytest.mark.slow
STEPS = 6
WITNESS = Path(__file__).with_name("witnessed_training.py")


def launcher():
    (port,) = free_ports(1)
    return (Path(sys.executable).with_name("deepspeed"), "--num_gpus", 2, "--master_port", port)


@pytest.fixture(scope="module")
def witnessed(workplace, call, tiny_run):
    """Runs the tiny rho1-wmtp for a few steps at 8 rows a step; the selection by (step, row), the loss by step."""
    tiny_run("rho1-wmtp")  # its corpus, tokenizer and reference

    def train(name, stage, ranks):
        folder = workplace / name
        folder.mkdir()
        config = {"train_batch_size": 8, "gradient_clipping": 1.0, "zero_optimization": {"stage": stage}}
        (folder / "deepspeed.json").write_text(json.dumps(config))
        arguments = ["--tiny", "--algo", "rho1-wmtp", "--steps", STEPS, "--data.evaluation_rows", 16]
        arguments += ["--deepspeed_config", folder / "deepspeed.json", "--output_dir", folder / "run"]
        by = launcher() if ranks == 2 else (sys.executable,)
        done = call(WITNESS, *arguments, by=("env", f"WITNESS={folder}", *by))
        assert done.returncode == 0, done.stderr[-3000:]
        selected, losses = {}, [0.0] * STEPS
        for rank in range(ranks):
            for step, row_ids, weights, loss in torch.load(folder / f"rank{rank}.pt"):
                losses[step] += loss.item()
                for row, weight in zip(row_ids.tolist(), weights, strict=True):
                    assert (step, row) not in selected
                    selected[step, row] = weight
        return selected, losses, json.loads((folder / "run/evaluation.json").read_text())

    return train


@pytest.fixture(scope="module")
def alone(witnessed):
    return witnessed("alone", stage=1, ranks=1)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_processes_select_the_same_tokens_and_lose_the_same(witnessed, alone, stage):
    selected_alone, losses_alone, figures_alone = alone
    selected, losses, metrics = witnessed(f"stage{stage}", stage, ranks=2)
    assert selected.keys() == selected_alone.keys()
    assert len(selected) == STEPS * 8
    assert [key for key in selected if not torch.equal(selected[key], selected_alone[key])] == []
    assert losses == pytest.approx(losses_alone, rel=1e-5)
    assert losses[-1] < losses[0]
    assert metrics == pytest.approx(figures_alone, rel=1e-4)


def test_an_error_ends_both_processes_with_one_line_and_exit_code_2(workplace):
    command = [*map(str, launcher()), "--module", "wmtp_train", "train", "--algo", "rho1"]  # as without a checkout
    done = subprocess.run(command, cwd=workplace, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    said = [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("error")]
    assert [line.startswith("error: algo is 'rho1'; choose one of") for line in said] == [True]
    assert "Traceback" not in done.stderr


def test_an_error_that_rank_0_finds_in_the_data_is_said_once_and_ends_both(call, workplace, tmp_path):
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "fine"}\n{"text": oops}\n')
    arguments = ["--tiny", "--algo", "mtp-baseline", "--output_dir", tmp_path / "run"]
    done = call("launch/train.py", *arguments, "--data.train", f'["{broken}"]', by=launcher())
    assert done.returncode == 2
    said = [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("error")]
    assert [line.startswith(f"error: {broken}:2: ") for line in said] == [True]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
