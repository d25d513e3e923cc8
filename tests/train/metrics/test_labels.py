from wmtp_train.metrics.labels import label_metrics

KINDS = ("hex", "shuffled")


def test_precision_recall_and_what_is_kept_of_each_label():
    metrics = label_metrics([10.0, 4.0, 0.0], [6.0, 3.0, 0.0], KINDS)
    assert metrics == {
        "noise/precision": 6 / 9,
        "noise/recall": 0.6,
        "noise/kept/clean": 0.6,
        "noise/kept/hex": 0.75,
        "noise/precision/hex": 6 / 9,
    }


def test_a_rule_that_keeps_everything_has_no_label_metrics():
    assert label_metrics([10.0, 4.0, 0.0], [10.0, 4.0, 0.0], KINDS) == {}


def test_a_corpus_without_noise_has_no_label_metrics():
    assert label_metrics([10.0], [6.0], ()) == label_metrics([10.0, 0.0], [6.0, 0.0], ("hex",)) == {}
