"""The kinds of heads. A new one is a class in a file of its own, and a line here."""

from wmtp_core import UserError
from wmtp_models.heads.base import Heads
from wmtp_models.heads.medusa import LinearHeads, ResidualHeads
from wmtp_models.heads.parallel import ParallelHeads
from wmtp_models.trunk.parts import TrunkParts

HEAD_KINDS: tuple[str, ...] = (ParallelHeads.kind, ResidualHeads.kind, LinearHeads.kind)


def require_head_kind(kind: str) -> None:
    """Refuse what is not a kind of heads.

    Raises:
        UserError: it is none.
    """
    if kind not in HEAD_KINDS:
        raise UserError(f"head_kind is {kind!r}: choose one of {', '.join(HEAD_KINDS)}")


def build_heads(kind: str, trunk: TrunkParts, count: int) -> Heads:
    """Build heads 1 … H−1 of a kind, where the trunk is.

    Args:
        kind: one of `HEAD_KINDS`.
        trunk: beside which they stand.
        count: H−1.
    """
    if kind == ParallelHeads.kind:
        return ParallelHeads(trunk.last_layer, count)
    blocks = (ResidualHeads if kind == ResidualHeads.kind else LinearHeads)(trunk.weight.shape[1], count)
    return blocks.to(device=trunk.weight.device, dtype=trunk.weight.dtype)
