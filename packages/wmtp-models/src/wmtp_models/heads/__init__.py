"""The kinds of heads. A new one is a class in a file of its own, and a name here."""

from wmtp_core import UserError
from wmtp_models.heads.base import Heads
from wmtp_models.heads.medusa import LinearHeads, ResidualHeads
from wmtp_models.heads.parallel import ParallelHeads
from wmtp_models.heads.sequential import SequentialHeads

KINDS: dict[str, type[Heads]] = {
    heads.kind: heads for heads in (ParallelHeads, SequentialHeads, ResidualHeads, LinearHeads)
}


def require_head_kind(kind: str) -> None:
    """Refuse what is not a kind of heads.

    Raises:
        UserError: it is none.
    """
    if kind not in KINDS:
        raise UserError(f"head_kind is {kind!r}: choose one of {', '.join(KINDS)}")
