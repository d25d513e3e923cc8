"""The README.md of an exported folder: what is in it, how it was trained, and how it is served."""

from collections.abc import Mapping
from pathlib import Path

from wmtp_models.policy import MtpForCausalLM


def write_model_card(
    policy: MtpForCausalLM,
    folder: Path,
    commands: Mapping[str, str],
    training: Mapping[str, str],
    acceptance: Mapping[str, Mapping[str, float]],
) -> None:
    """Write the card.

    Args:
        policy: what was exported.
        folder: where to.
        commands: by server and version, how it is started with this folder.
        training: what the model was made from and with, by a label.
        acceptance: by held-out set, the share of each head's drafts that are accepted, and the tokens per forward.
    """
    sections = [_heading(policy), _training(training)]
    if acceptance:
        sections.append(_acceptance(acceptance))
    if commands:
        blocks = "\n\n".join(f"{server}:\n\n```\n{command}\n```" for server, command in commands.items())
        sections.append(f"## How to serve it\n\n{blocks}")
    (folder / "README.md").write_text("\n\n".join(sections) + "\n")


def _heading(policy: MtpForCausalLM) -> str:
    config = policy.config
    family, last = config.trunk.model_type, config.horizon - 1
    if not last:
        return f"# {family}\n\nExported by WMTP. It predicts one token, as it has no later heads."
    shared = ""
    if config.head_kind == "sequential":
        shared = ", one module for all depths" if config.shared_module else ", a module for each depth"
    return (
        f"# {family} with {config.horizon} heads for future tokens\n\nExported by WMTP. The trunk is a `{family}`; "
        f"heads 1 to {last} are of the kind `{config.head_kind}`{shared}. Where a server drafts with them, the trunk "
        "verifies every token."
    )


def _training(training: Mapping[str, str]) -> str:
    if not training:
        return "How it was trained is not on record beside the model that was exported."
    return "\n".join(["| | |", "|---|---|", *(f"| {label} | {text} |" for label, text in training.items())])


def _acceptance(acceptance: Mapping[str, Mapping[str, float]]) -> str:
    columns = list(dict.fromkeys(column for row in acceptance.values() for column in row))
    rows = [["held-out set", *columns]]
    rows += [[name, *(f"{row[c]:.3f}" if c in row else "" for c in columns)] for name, row in acceptance.items()]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|---|" + "--:|" * len(columns))
    table = "\n".join(lines)
    said = "How often greedy decoding would accept each head's draft, if it began at every position of a held-out text:"
    return f"## Acceptance\n\n{said}\n\n{table}"
