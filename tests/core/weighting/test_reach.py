"""The chance that a draft is reached: by its definition, and against a decoder that samples."""

import torch

from wmtp_core import ReachWeighting, WeightingInputs


def weigh(ce, valid):
    inputs = WeightingInputs(valid=valid, step=0, row_ids=torch.arange(len(ce)))
    return ReachWeighting().plan(inputs).weights(ce.where(valid, 0))


def test_definition():
    draw = torch.Generator().manual_seed(0)
    ce = torch.rand(2, 9, 4, generator=draw) * 4
    valid = torch.rand(2, 9, 4, generator=draw) < 0.8
    for t, h in [(t, h) for t in range(9) for h in range(4) if t + h + 1 >= 9]:
        valid[:, t, h] = False
    weights = weigh(ce, valid)
    for b in range(2):
        for t in range(9):
            reached = 1.0
            for h in range(4):
                expected = 0.0 if not valid[b, t, h] else 1.0 if h == 0 else reached
                assert abs(weights[b, t, h].item() - expected) < 1e-6
                if not valid[b, t, h]:
                    reached = 0.0
                elif h:
                    verifying = ce[b, t + h, 0] if valid[b, t + h, 0] else 0.0
                    reached *= min(1.0, float(torch.exp(torch.as_tensor(verifying) - ce[b, t, h])))


def test_on_sampled_text_it_is_the_share_of_rounds_that_come_so_far():
    """Texts drawn from p; drafts drawn from q and verified as speculative sampling does."""
    draw, vocabulary, texts = torch.Generator().manual_seed(1), 5, 60_000
    p = torch.softmax(torch.randn(3, vocabulary, generator=draw), -1)  # head 0 at t, t+1, t+2
    q = torch.softmax(torch.randn(3, vocabulary, generator=draw), -1)  # heads 0, 1, 2 at t
    text = torch.stack([p[i].multinomial(texts, True, generator=draw) for i in range(3)], dim=1)  # [texts, 3]
    ce = torch.zeros(texts, 4, 3)
    for i in range(3):
        ce[:, i, 0] = -p[i][text[:, i]].log()
        ce[:, 0, i] = -(p if i == 0 else q)[i][text[:, i]].log()
    valid = torch.zeros(texts, 4, 3, dtype=torch.bool)
    valid[:, 0], valid[:, :3, 0] = True, True
    weights = weigh(ce, valid)[:, 0].mean(0)

    drafts = torch.stack([q[i].multinomial(texts, True, generator=draw) for i in range(3)], dim=1)
    chance = torch.stack([(p[i] / q[i]).clamp(max=1)[drafts[:, i]] for i in range(3)], dim=1)
    accepted = torch.rand(texts, 3, generator=draw) < chance
    assert weights[:2].tolist() == [1, 1]
    assert abs(weights[2] - accepted[:, 1].float().mean()) < 0.01


def test_no_decoder_starts_within_a_prompt():
    valid = torch.zeros(1, 4, 3, dtype=torch.bool)
    valid[0, 0, 2] = valid[0, 1, 1] = valid[0, 2, 0] = True  # the one token that is learned
    assert weigh(torch.zeros(1, 4, 3), valid)[0].tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0]]
