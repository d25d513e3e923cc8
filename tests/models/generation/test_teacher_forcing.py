"""What `wmtp_core.accepted_drafts` says of a text that the model decoded is what the decoder kept."""

from collections.abc import Callable

import pytest
import torch

from wmtp_core import accepted_drafts
from wmtp_models import MtpForCausalLM, generate


@pytest.mark.parametrize("head_kind", ["layer", "sequential", "mlp"])
def test_the_drafts_of_a_decoded_text_are_kept_where_the_decoder_kept_them(
    head_kind: str, make_policy: Callable[..., MtpForCausalLM], prompts: list[list[int]]
) -> None:
    policy = make_policy(head_kind=head_kind)
    for prompt in prompts:
        found = generate(policy, [prompt], 30)
        text = found.sequences[0]
        output = policy(torch.tensor([text]), predict=True)
        assert output.predicted is not None
        keeps = (accepted_drafts(output.predicted)[0].sum(dim=-1) - 1).tolist()  # how many drafts, from each position
        position, drafted, kept, forwards = len(prompt) - 1, [0] * 3, [0] * 3, 1
        # The forward of the prompt gives one token and drafts; each later one begins where the one before it ended.
        while (room := len(text) - 1 - (position + 1)) > 0:
            took = min(keeps[position], room)
            for h in range(min(3, room)):
                drafted[h] += 1
                kept[h] += h < took
            position, forwards = position + 1 + took, forwards + 1
        assert (found.drafted, found.accepted, found.row_forwards) == (drafted, kept, forwards)
        assert sum(kept) > 0
        assert kept != drafted
