from typing import Any

import pytest

from wmtp_lab.report.runs import read_runs
from wmtp_lab.report.summary import held_out_loss, result_sentence, table_head, table_row

CURVES = {f"evaluation/clean/ce/head_{h}": [(20, 7.0 + h), (30, last)] for h, last in enumerate((4.25, 5.75, 9.5))}


@pytest.fixture
def run(make_run: Any) -> Any:
    return read_runs([make_run()])[0]


def test_the_sentence_holds_the_metrics(run: Any) -> None:
    words = result_sentence(run).replace("\u00a0", " ").replace("\u202f", " ")
    assert words == (
        "from step 10 to 30 the loss on training text fell for every head (head 0 8.00 → 4.00, head 1 8.50 → 5.50, "
        "head 2 9.00 → 7.00, in nats per token), and on held-out text (clean) it ends at 4.25, 5.75, 7.25; "
        "on noisy, the later heads keep 83 % of the predictions of clean tokens and 12 % (base64) to 31 % (log) of "
        "noise; on noisy, excess loss tells clean from noise with an AUC of 0.79 (chance: 0.50)."
    )


def test_held_out_curves_are_told_first_and_a_loss_that_rose_is_not_said_to_fall(make_run: Any) -> None:
    scalars = {"ce/head_0": [(10, 8.0), (30, 4.0)], **CURVES}
    words = result_sentence(read_runs([make_run(scalars=scalars)])[0])
    assert "from step 20 to 30 the loss on held-out text (clean) fell for 2 of 3 heads" in words
    assert "training" not in words
    assert "keep" not in words  # there is no sign that this run selects


def test_a_run_without_held_out_text_speaks_of_training_alone(make_run: Any) -> None:
    scalars = {"ce/head_0": [(10, 8.0), (30, 4.0)]}
    (run,) = read_runs([make_run(scalars=scalars, metrics={}, passages={})])
    assert held_out_loss(run) is None
    assert result_sentence(run) == (
        "from step 10 to 30 the loss on training text fell (head 0 8.00\u00a0→\u00a04.00, in nats per token)."
    )


def test_clean_text_stands_for_the_run_else_the_clean_tokens_of_noisy_text(make_run: Any, run: Any) -> None:
    assert held_out_loss(run) == ("clean/ce", "clean")
    metrics = {"noisy/ce/head_0": 5.0, "noisy/clean_ce/head_0": 4.0}
    (noisy,) = read_runs([make_run("other", metrics=metrics)])
    assert held_out_loss(noisy) == ("noisy/clean_ce", "noisy, its clean tokens")


def test_the_row_fits_the_head(run: Any) -> None:
    row = dict(zip(table_head(4), table_row(run, 4), strict=True))
    assert row == {
        "Run": "run",
        "Algorithm": "rho1-wmtp",
        "Steps": "30",
        "Tokens": "30,000",  # 30 steps of 2000 tokens/s · 0.5 s
        "Tokens/s": "4,000",  # the median: the first interval holds the start
        "Held-out set": "clean",
        "head 0": "4.25",
        "head 1": "5.75",
        "head 2": "7.25",
        "head 3": "–",
        "Clean kept": "83\u202f%",
        "Excess AUC": "0.79",
        "Value AUC": "–",
    }
