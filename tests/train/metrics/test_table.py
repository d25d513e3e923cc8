from wmtp_train.metrics.table import metrics_table


def test_the_parts_of_a_figure_stand_side_by_side_under_their_set():
    metrics = {
        "clean/ce/head_0": 1.23456,
        "clean/ce/head_1": 2.0,
        "clean/excess_auc": 0.75,
        "noisy/ce/head_0": 3.0,
        "noisy/noise/kept/shuffled_words": 0.5,
        "noisy/noise/recall": 0.25,
    }
    assert [" ".join(line.split()) for line in metrics_table(metrics).splitlines()] == [
        "clean ce head 0 1.235 head 1 2.000",
        "clean excess_auc 0.750",
        "noisy ce head 0 3.000",
        "noisy noise kept shuffled words 0.500",
        "noisy noise recall 0.250",
    ]


def test_no_figures_make_no_table():
    assert metrics_table({}) == ""
