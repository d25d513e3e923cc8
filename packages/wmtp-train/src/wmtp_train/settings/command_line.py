"""Settings from the command line, the environment and a YAML file, with errors in one line."""

import argparse
import difflib
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_settings import SettingsError

from wmtp_core import UserError
from wmtp_train.settings.schema import Settings


def load_settings(argv: list[str] | None = None, tiny_config: Path | None = None) -> Settings:
    """Read settings from the command line, the environment and the YAML file that `--config` names.

    Args:
        argv: arguments without the program's name; by default this process's own.
        tiny_config: the YAML file that `--tiny` stands for where no `--config` is given.

    Raises:
        UserError: an unknown key, a value out of bounds, a file that is missing or not YAML; in one line.
    """
    # DeepSpeed's launcher adds --local_rank to every script; the environment says the same.
    arguments = [a for a in (sys.argv[1:] if argv is None else argv) if not a.startswith("--local_rank")]
    only_config = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    only_config.add_argument("--config", type=Path, default=os.environ.get("WMTP_CONFIG"))
    try:
        path = only_config.parse_known_args(arguments)[0].config
    except argparse.ArgumentError as error:
        raise UserError(f"command line: {error}; name a YAML file") from error
    if path is None and ("--tiny" in arguments or os.environ.get("WMTP_TINY", "").lower() in ("1", "true")):
        path = tiny_config
    for variable in os.environ:
        field = variable.removeprefix("WMTP_").split("__")[0].lower()
        if variable.startswith("WMTP_") and field not in Settings.model_fields:
            raise UserError(f"environment variable {variable}: there is no setting {field!r}; unset it or fix its name")
    from_file = _read_yaml(path)
    given = {argument.split("=")[0] for argument in arguments}
    for section, key in (("model", "config"), ("data", "evaluate")):
        if f"--{section}.{key}" in given and isinstance(from_file.get(section), dict):
            from_file[section].pop(key, None)  # no mixture of two models, or of two lists of sets
    for length, other in (("steps", "epochs"), ("epochs", "steps")):
        if f"--{length}" in given:
            from_file.pop(other, None)
    try:
        settings = Settings(_cli_parse_args=arguments, **from_file)
    except ValidationError as error:
        raise UserError("; ".join(_describe(e) for e in error.errors())) from error
    except SettingsError as error:
        raise UserError(f"command line: {error}; --help lists every setting") from error
    if settings.tiny and "output_dir" not in settings.model_fields_set:
        return settings.model_copy(update={"output_dir": tiny_output(settings.algo)})
    return settings


def tiny_output(algo: str) -> Path:
    """Return where a tiny run of an algorithm goes, if no `output_dir` is named."""
    return Path("runs/tiny") / algo


def _read_yaml(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = yaml.safe_load(path.read_text())
    except UnicodeDecodeError as error:
        raise UserError(f"--config {path}: not UTF-8 text; save it as such") from error
    except OSError as error:
        raise UserError(f"--config {path}: {str(error.strerror).lower()}; launch/configs holds examples") from error
    except yaml.YAMLError as error:
        raise UserError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"--config {path}: a mapping of settings is expected, like `steps: 1000`")
    if odd := [key for key in content if not isinstance(key, str) or key.startswith("_")]:
        raise UserError(f"--config {path}: the key {odd[0]!r} is not the name of a setting; fix or remove it")
    return content


def _describe(error: Any) -> str:
    """Return one of pydantic's errors as `setting data.sequence_length = 1: …`."""
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        section: Any = Settings
        for part in error["loc"][:-1]:
            section = section.model_fields[part].annotation
        close = difflib.get_close_matches(str(error["loc"][-1]), section.model_fields, n=1)
        return f"setting {name}: there is no such key" + (f"; did you mean {close[0]!r}?" if close else "; remove it")
    if not name:
        return str(error["msg"]).removeprefix("Value error, ")
    hint = ""
    if name.endswith("k_percent") and error["type"] == "less_than_equal":
        hint = f"; it is a fraction: did you mean {float(error['input']) / 100:g}?"
    return f"setting {name} = {error['input']!r}: {error['msg']}{hint}"
