"""The command `wmtp`: its list, its commands, and what it says to others."""

import subprocess
import sys
from pathlib import Path

import pytest

from ranks import free_ports
from wmtp_train import __main__ as command_line
from wmtp_train.commands import COMMANDS


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["wmtp", *arguments])
    command_line.main()


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_the_commands_are_listed_a_line_each(arguments, monkeypatch, capsys):
    run(monkeypatch, *arguments)
    listed = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert listed == [[name, text] for name, text in COMMANDS.items()]


def test_another_name_is_refused_in_one_line(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "trian", "--tiny")
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: wmtp trian: there is no such command; wmtp --help lists them\n"


def test_a_command_gets_its_own_options_and_nothing_of_the_launcher(monkeypatch):
    called = []
    monkeypatch.setattr(command_line, "run_command", lambda name: called.append((name, sys.argv)))
    run(monkeypatch, "--local_rank=1", "train", "--algo", "rho1-wmtp")
    assert called == [("train", ["wmtp train", "--algo", "rho1-wmtp"])]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_help_under_its_name(name, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, name, "--help")
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: wmtp {name} ")


@pytest.mark.slow
def test_torchrun_starts_it_as_a_module(tmp_path):
    (port,) = free_ports(1)
    command = [Path(sys.executable).with_name("torchrun"), "--nproc-per-node", "2", "--master-port", str(port)]
    command += ["-m", "wmtp_train", "train", "--algo", "rho1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    said = [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("error")]
    assert [line.startswith("error: algo is 'rho1'; choose one of") for line in said] == [True]
