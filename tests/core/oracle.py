"""The definitions of the maths once more, in float64 and plain loops, with nothing of the packages in them.

Every function takes and returns numpy arrays (or nested lists) of the shapes that the packages use.
"""

import math
from fractions import Fraction

import numpy as np

IGNORED = -100


def targets(labels, horizon, attention_mask=None, document_ids=None):
    """Head h at t predicts the token at p = t + h + 1, if that is in the row, attended, labelled, of t's document."""
    rows, length = np.shape(labels)
    tokens = np.full((rows, length, horizon), IGNORED, dtype=np.int64)
    for b, t, h in np.ndindex(rows, length, horizon):
        p = t + h + 1
        if p >= length or labels[b][p] == IGNORED:
            continue
        if attention_mask is not None and not attention_mask[b][p]:
            continue
        if document_ids is not None and document_ids[b][p] != document_ids[b][t]:
            continue
        tokens[b, t, h] = labels[b][p]
    return tokens, tokens != IGNORED


def token_loss(logits, target):
    """−log softmax(logits)[target] of one row of logits."""
    values = [float(x) for x in logits]
    peak = max(values)
    return math.log(sum(math.exp(x - peak) for x in values)) + peak - values[target]


def cross_entropy(logits, tokens):
    """[..., V] and [...] → float64 [...], 0 at ignored targets."""
    losses = np.zeros(tokens.shape)
    for index in np.ndindex(*tokens.shape):
        if tokens[index] != IGNORED:
            losses[index] = token_loss(logits[index], tokens[index])
    return losses


def token_gradient(logits, target):
    """d token_loss / d logits: softmax − one-hot."""
    exponentials = np.array([math.exp(float(x) - float(max(logits))) for x in logits])
    gradient = exponentials / exponentials.sum()
    gradient[target] -= 1
    return gradient


def linear_cross_entropy(hidden, weight, tokens, grad):
    """Losses [N], and the gradients of Σ grad·loss in hidden [N, D] and weight [V, D]."""
    hidden, weight = np.asarray(hidden, dtype=np.float64), np.asarray(weight, dtype=np.float64)
    losses, grad_hidden, grad_weight = np.zeros(len(hidden)), np.zeros_like(hidden), np.zeros_like(weight)
    for n, token in enumerate(tokens):
        if token == IGNORED:
            continue
        logits = weight @ hidden[n]
        losses[n] = token_loss(logits, token)
        if grad[n] != 0:
            grad_logits = float(grad[n]) * token_gradient(logits, token)
            grad_hidden[n] = grad_logits @ weight
            grad_weight += np.outer(grad_logits, hidden[n])
    return losses, grad_hidden, grad_weight


def reference_cross_entropy(logits, labels, attention_mask):
    """One scalar per token, indexed by the token's own position, from a next-token model's logits [B, S, V]."""
    losses = np.zeros(np.shape(labels))
    for b, p in np.ndindex(*losses.shape):
        if p > 0 and attention_mask[b][p] and labels[b][p] != IGNORED:
            losses[b, p] = token_loss(logits[b][p - 1], labels[b][p])
    return losses


def excess(ce, reference_ce):
    """ce[b, t, h] − reference_ce[b, t+h+1], signed; NaN where there is no such token."""
    rows, length, horizon = np.shape(ce)
    result = np.full((rows, length, horizon), np.nan)
    for b, t, h in np.ndindex(rows, length, horizon):
        if t + h + 1 < length:
            result[b, t, h] = float(ce[b][t][h]) - float(reference_ce[b][t + h + 1])
    return result


def top_count(valid_count, k_percent):
    """1 + floor(k·(n−1)) in exact arithmetic on the decimal that k is written as."""
    return 1 + math.floor(Fraction(str(k_percent)) * (valid_count - 1)) if valid_count else 0


def top(scores, valid, k_percent):
    """Keep the top k of one flat list of scores: NaN first, then the highest, ties by position."""
    candidates = [i for i in range(len(scores)) if valid[i]]
    candidates.sort(key=lambda i: (not math.isnan(scores[i]), 0 if math.isnan(scores[i]) else -float(scores[i]), i))
    kept = np.zeros(len(scores), dtype=bool)
    kept[candidates[: top_count(len(candidates), k_percent)]] = True
    return kept


def select(ce, reference_ce, valid, k_percent, scope="batch"):
    """The rho1 rule: head 0 whole, each later head its top k over the batch or within each row."""
    rows, _, horizon = valid.shape
    scores, weights = excess(ce, reference_ce), np.zeros(valid.shape)
    weights[..., 0] = valid[..., 0]
    for h in range(1, horizon):
        if scope == "batch":
            weights[..., h] = top(scores[..., h].ravel(), valid[..., h].ravel(), k_percent).reshape(rows, -1)
        else:
            for b in range(rows):
                weights[b, :, h] = top(scores[b, :, h], valid[b, :, h], k_percent)
    return weights


def weighted_loss(ce, weights, valid, normalize_by="valid"):
    """(1/H) Σ_h Σ_valid(w·ce) / N_h."""
    horizon = valid.shape[-1]
    total = 0.0
    for h in range(horizon):
        cells = [
            (float(w), float(c))
            for w, c, v in zip(*(x[..., h].ravel() for x in (weights, ce, valid)), strict=True)
            if v
        ]
        count = len(cells) if normalize_by == "valid" else sum(w != 0 for w, _ in cells)
        if count:
            total += sum(w * c for w, c in cells if w) / count
    return total / horizon


def documents(document_ids):
    """(start, end) of every document of one row."""
    starts = [t for t in range(len(document_ids)) if t == 0 or document_ids[t] != document_ids[t - 1]]
    return list(zip(starts, [*starts[1:], len(document_ids)], strict=True))


def differences(values, discount, document_ids):
    """δ_t = V_t − discount·V_{t−1}, V = 0 before the document."""
    result = np.zeros(np.shape(values))
    for b, ids in enumerate(document_ids):
        for start, end in documents(ids):
            for t in range(start, end):
                result[b, t] = float(values[b][t]) - (discount * float(values[b][t - 1]) if t > start else 0.0)
    return result


def gae(deltas, discount, gae_lambda, document_ids):
    """A_t = Σ_l (discount·λ)^l δ_{t+l} to the end of the document."""
    result = np.zeros(np.shape(deltas))
    for b, ids in enumerate(document_ids):
        for start, end in documents(ids):
            for t in range(start, end):
                result[b, t] = sum((discount * gae_lambda) ** (u - t) * deltas[b][u] for u in range(t, end))
    return result


def lambda_returns(values, rewards, return_lambda, document_ids):
    """Σ over n of (1−λ)λ^(n−1)·(n-step return), written out: the last weight goes to the reward."""
    result = np.zeros(np.shape(values))
    for b, ids in enumerate(document_ids):
        for start, end in documents(ids):
            for t in range(start, end):
                left = end - 1 - t  # values that lie between here and the reward
                steps = sum((1 - return_lambda) * return_lambda**n * float(values[b][t + 1 + n]) for n in range(left))
                result[b, t] = steps + return_lambda**left * float(rewards[b][end - 1])
    return result


def softmax_weights(scores, valid, temperature):
    """n · softmax(scores / temperature) over the n valid heads of each position."""
    weights = np.zeros(valid.shape)
    for b, t in np.ndindex(*valid.shape[:2]):
        heads = [h for h in range(valid.shape[-1]) if valid[b, t, h]]
        if heads:
            peak = max(scores[b, t, h] for h in heads)
            shares = {h: math.exp((scores[b, t, h] - peak) / temperature) for h in heads}
            for h in heads:
                weights[b, t, h] = len(heads) * shares[h] / sum(shares.values())
    return weights


def exponential_weights(scores, valid, beta, clip):
    """exp(whitened / β), clipped, rescaled to mean 1 over the valid targets."""
    cells = [tuple(i) for i in np.argwhere(valid)]
    values = np.array([scores[i] for i in cells])
    raw = [min(clip, math.exp(x / beta)) for x in (values - values.mean()) / values.std()]
    weights = np.zeros(valid.shape)
    for cell, x in zip(cells, raw, strict=True):
        weights[cell] = x * len(cells) / sum(raw)
    return weights


def to_heads(values, horizon):
    """values[b, t+h+1], 0 beyond the row."""
    rows, length = np.shape(values)
    result = np.zeros((rows, length, horizon))
    for b, t, h in np.ndindex(rows, length, horizon):
        if t + h + 1 < length:
            result[b, t, h] = float(values[b][t + h + 1])
    return result
