"""Bytes that a forward and backward hold on one GPU for a while.

What autograd keeps of a layer is what transformers' Llama saves today, tensor by tensor, when attention is one fused
kernel with a mask that keeps packed documents apart.
"""

from scaling.plan import Plan
from wmtp_core.selection import keep_ratio

BYTES_PER_COMPARED_VALUE = 34
"""Of `topk_mask`: 9 for a gathered score and its validity, and at most 25 while they are sorted and counted."""


def layer_activations(plan: Plan, element: int) -> float:
    """What autograd keeps of one layer; `element` is the bytes of an activation (2: bf16).

    At each position: of two norms the float32 input, 1/rms, the normed and the scaled states; queries, keys, values
    (repeated for grouped queries), the output, the sums of the softmax and a row of the mask; four tensors of the MLP.
    """
    model = plan.policy
    norms = 2 * (4 * model.hidden_size + 4 + 2 * element * model.hidden_size)
    attention = 4 * element * model.attention_width + 4 * model.attention_heads + element * plan.sequence_length
    return plan.positions * (norms + attention + 4 * element * model.intermediate_size)


def activations(plan: Plan, element: int, checkpointing: bool) -> float:
    """What autograd keeps of trunk, heads and final norms until the backward, at most."""
    model = plan.policy
    final_norms = plan.positions * model.horizon * ((4 + element) * model.hidden_size + 4)
    layer = layer_activations(plan, element)
    if not checkpointing:
        return (model.layers - 1 + model.horizon) * layer + final_norms
    inputs = model.layers * plan.positions * element * model.hidden_size  # the heads share one
    return inputs + layer + final_norms


def loss_buffers(plan: Plan, element: int) -> float:
    """What `linear_cross_entropy` holds: states and their gradients, the unembedding's gradient, a chunk of logits."""
    model = plan.policy
    rows = plan.positions * model.horizon
    states = 2 * element * rows * model.hidden_size
    weight = (4 + (element if element < 4 else 0)) * model.vocab_size * model.hidden_size
    kept = keep_ratio(plan.k_percent, model.horizon)
    chunk = (1 + kept) * element * min(model.rows_of_logits, rows) * model.vocab_size
    return states + weight + chunk


def selection_buffers(plan: Plan) -> float:
    """What comparing the later heads' excess losses of all GPUs (scope batch) holds."""
    return BYTES_PER_COMPARED_VALUE * (plan.policy.horizon - 1) * plan.gpus * plan.positions
