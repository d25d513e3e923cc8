"""The README.md of an exported folder: what is in it, and how it is served."""

from pathlib import Path

from wmtp_models.policy import MtpForCausalLM

_CARD = """# {family} with {heads} heads for future tokens

Written by WMTP. The trunk is a `{family}`; heads 1 to {last} are of the kind `{kind}`{shared}, and draft the tokens
that the trunk then verifies: the text is the trunk's own.

{commands}"""


def write_model_card(policy: MtpForCausalLM, folder: Path, commands: dict[str, str]) -> None:
    """Write the card.

    Args:
        policy: what was exported.
        folder: where to.
        commands: by server and version, how it is started with this folder.
    """
    config = policy.config
    shared = ", one module for all depths" if config.shared_module else ", a module for each depth"
    blocks = [f"{server}:\n\n```\n{command}\n```\n" for server, command in commands.items()]
    text = _CARD.format(
        family=config.trunk.model_type,
        heads=config.horizon,
        last=config.horizon - 1,
        kind=config.head_kind,
        shared=shared,
        commands="\n".join(blocks),
    )
    (folder / "README.md").write_text(text)
