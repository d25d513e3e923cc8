"""The formats that a model can be exported to."""

from pathlib import Path
from typing import Protocol

from wmtp_models.formats import consolidated, exaone, generic, glm, hf, medusa, mimo_drafter, native, wmtp
from wmtp_models.policy import MtpForCausalLM


class Format(Protocol):
    """What a module of this folder offers."""

    def unsupported_parts(self, policy: MtpForCausalLM) -> list[str]:
        """Return the parts of a model that the format has no place for."""

    def commands(self, policy: MtpForCausalLM) -> dict[str, str]:
        """Return how servers, by name and version, are started with the folder; empty where none reads it."""

    def save(self, policy: MtpForCausalLM, folder: Path) -> None:
        """Write all the rest into an empty folder, or raise a `UserError`."""

    def check(self, policy: MtpForCausalLM, folder: Path) -> str:
        """Read it back and compare; says what was equal, or raises a `UserError`."""


FORMATS: dict[str, Format] = {
    "hf": hf,
    "wmtp": wmtp,
    "native": native,
    "generic": generic,
    "exaone": exaone,
    "mimo-drafter": mimo_drafter,
    "glm": glm,
    "medusa": medusa,
    "consolidated": consolidated,
}
