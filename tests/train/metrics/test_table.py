from wmtp_train.metrics.table import metrics_table

METRICS = {
    "clean/ce/head_0": 1.23456,
    "clean/ce/head_1": 2.0,
    "clean/acceptance/head_1": 0.5,
    "clean/tokens_per_forward": 1.5,
    "clean/excess_auc": 0.75,
    "noisy/ce/head_0": 13.0,
    "noisy/ce/head_1": 12.5,
    "noisy/noise/kept/shuffled_words": 0.5,
    "humaneval/pass@1": 0.25,
    "arc_easy/acc": 0.125,
}
TABLES = """\
set    metric      unit        head 0  head 1
clean  ce          nats/token   1.235   2.000
clean  acceptance  share            -   0.500
noisy  ce          nats/token  13.000  12.500

set        metric                     unit         value
clean      tokens_per_forward         tokens       1.500
clean      excess_auc                 probability  0.750
noisy      noise/kept/shuffled_words  share        0.500
humaneval  pass@1                     share        0.250
arc_easy   acc                                     0.125"""


def test_heads_stand_side_by_side_and_every_column_has_its_header_and_every_figure_its_unit():
    assert metrics_table(METRICS) == TABLES


def test_what_has_no_heads_is_one_table():
    lines = metrics_table({"humaneval/pass@1": 0.25}).splitlines()
    assert [line.split() for line in lines] == [
        ["set", "metric", "unit", "value"],
        ["humaneval", "pass@1", "share", "0.250"],
    ]


def test_no_figures_make_no_table():
    assert metrics_table({}) == ""
