import json
from dataclasses import replace

import torch

from wmtp_core import Rho1Weighting
from wmtp_train.metrics.annotated_sample import annotate_sample, pick_sample

HORIZON = 3


class Letters:
    """Decodes token 1 as "<1>"."""

    def decode(self, tokens):
        (token,) = tokens
        return f"<{token}>"


def test_every_token_carries_the_weights_of_the_predictions_of_itself(random_micro_batch, answers):
    batch, output, signals = random_micro_batch(3, HORIZON)
    # Row 1 has the most kinds of noise, and clean text too.
    batch.token_labels[:] = torch.tensor([[0] * 9, [0, 1, 1, 0, 2, 2, 0, 0, 0], [1] * 9])
    weighting = Rho1Weighting(0.5)
    weights = weighting.plan(signals).weights(output.ce)[1]
    step = answers([(batch, output, signals)], weighting, None)
    passage = annotate_sample(step, batch, 0, Letters(), ("hex", "shuffled"))
    assert passage["tokens"] == [f"<{token}>" for token in batch.input_ids[1].tolist()]
    assert passage["noise"] == ["", "hex", "hex", "", "shuffled", "shuffled", "", "", ""]
    assert passage["documents"] == batch.document_ids[1].tolist()
    for p in range(9):
        for h in range(HORIZON):
            t = p - h - 1
            predicted = t >= 0 and bool(signals.valid[1, t, h])
            assert passage["weights"][p][h] == (weights[t, h].item() if predicted else None)
    given = [w for token in passage["weights"] for w in token]
    assert {0.0, 1.0, None} <= set(given)
    assert passage["weights"][0] == [None] * HORIZON
    assert json.loads(json.dumps(passage, allow_nan=False)) == passage


def test_text_without_labels_is_clean(random_micro_batch, answers):
    batch, output, signals = random_micro_batch(3, HORIZON)
    batch, signals = replace(batch, token_labels=None), replace(signals, token_labels=None)
    step = answers([(batch, output, signals)], Rho1Weighting(1.0), None)
    passage = annotate_sample(step, batch, 0, Letters(), ())
    assert passage["noise"] == [""] * 9


def test_the_batch_with_the_best_row_is_found(random_micro_batch):
    batches = [
        replace(random_micro_batch(seed)[0], token_labels=torch.zeros(3, 9, dtype=torch.int64)) for seed in range(4)
    ]
    for place in (1, 3):
        batches[place].token_labels[2] = torch.tensor([0, 0, 1, 1, 0, 2, 2, 0, 0])
    batches[2].token_labels[:] = torch.tensor([0, 0, 1, 1, 0, 1, 1, 0, 0])
    assert pick_sample(batches) is batches[1]


def test_text_without_labels_has_a_passage_too(random_micro_batch):
    batches = [replace(random_micro_batch(seed)[0], token_labels=None) for seed in range(2)]
    assert pick_sample(batches) is batches[0]
