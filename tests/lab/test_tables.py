from wmtp_lab.tables import Table, number


def test_markdown() -> None:
    assert Table("T", "Note.", ["a", "b"], [["x", "1"]]).markdown().split("\n") == [
        "### T", "", "Note.", "", "| a | b |", "| --- | --: |", "| x | 1 |"
    ]  # fmt: skip


def test_minus_is_a_minus() -> None:
    assert number(-0.5, 2) == "−0.50"
    assert number(0.5, 2, signed=True) == "+0.50"


def test_a_metric_that_is_not_known_is_a_dash() -> None:
    assert (number(None), number(float("nan")), number(0.5, 2)) == ("–", "–", "0.50")
