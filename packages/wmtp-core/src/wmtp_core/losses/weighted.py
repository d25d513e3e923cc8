"""The weighted multi-token loss of per-token losses.

loss = (1/H) Σ_h c_h Σ_valid w·ce / N_h, with N_h the number of valid targets of head h over everything that one
optimizer step sees (Gloeckle et al., arXiv 2404.19737, equation 2, with a weight per prediction), and c_h a coefficient
per head (with c_0 = 1 and c_h = λ else, up to a common factor, arXiv 2412.19437, equation 25).
"""

from torch import Tensor


def weighted_mtp_loss(ce: Tensor, head_weights: Tensor, counts: Tensor, coefficients: Tensor | None = None) -> Tensor:
    """Return the weighted loss of per-token losses.

    Args:
        ce: float32 `[B, S, H]`, 0 where not valid.
        head_weights: float `[B, S, H]`, 0 where not valid; taken as constants.
        counts: `[H]`, the denominators N_h. A head of count 0 contributes 0.
        coefficients: float32 `[H]`, the c_h; None: all 1.

    Returns:
        A float32 scalar. A target of weight 0 contributes exactly 0 and receives a gradient of exactly 0.
    """
    weights = head_weights.detach()
    per_head = (ce * weights).where(weights != 0, 0).sum(dim=(0, 1))  # [H]; an infinite loss of weight 0 is no loss
    per_head = per_head / counts.clamp(min=1)
    return (per_head if coefficients is None else coefficients * per_head).sum() / ce.shape[-1]
