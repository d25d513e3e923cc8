"""How far a student's distribution is from its teacher's, and the gradients: the definitions, on log-probabilities.

A drafted token is accepted in sampling with probability Σ_v min(p(v), q(v)) = 1 − TV(p, q) (Leviathan et al., arXiv
2211.17192, corollary 3.6), so the total variation is what drafting loses; the forward KL divergence bounds it (Pinsker)
and has a gradient wherever the two differ.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from wmtp_core.errors import UserError

Divergence = Literal["forward-kl", "reverse-kl", "total-variation"]


def check_divergence(kind: str) -> None:
    """Raise UserError unless there is a divergence of that name."""
    if kind not in get_args(Divergence):
        raise UserError(f"divergence is {kind!r}; choose one of {', '.join(get_args(Divergence))}")


def divergence(kind: Divergence, teacher: Tensor, student: Tensor) -> Tensor:
    """Return the divergence of each row.

    Args:
        kind: forward-kl is Σ p·(log p − log q), reverse-kl Σ q·(log q − log p), total-variation ½ Σ |p − q|.
        teacher: float `[n, V]`, log p.
        student: float `[n, V]`, log q.

    Returns:
        float `[n]`, at least 0.
    """
    if kind == "forward-kl":
        terms = teacher.exp() * (teacher - student)
    elif kind == "reverse-kl":
        terms = student.exp() * (student - teacher)
    else:
        terms = (teacher.exp() - student.exp()).abs_() / 2
    return terms.sum(dim=-1).clamp(min=0)


def divergence_gradient(kind: Divergence, teacher: Tensor, student: Tensor) -> Tensor:
    """Return the gradient of each row's divergence in the student's logits, float `[n, V]`; arguments as above."""
    q = student.exp()
    if kind == "forward-kl":
        return q.sub_(teacher.exp())
    # Of Σ f(q) the gradient is q·(f' − Σ q·f').
    slope = student - teacher if kind == "reverse-kl" else torch.sign(q - teacher.exp()) / 2
    return slope.sub_((q * slope).sum(dim=-1, keepdim=True)).mul_(q)
