import io

import matplotlib.image

from benchmarks.comparison import Comparison, Measurement
from benchmarks.parts import PARTS
from benchmarks.plots import draw_comparisons, draw_parts
from benchmarks.tables import to_markdown


def _samples(*seconds: float) -> list[dict[str, float]]:
    return [{"cpu": value, "wall": 2 * value} for value in seconds]


COMPARISON = Comparison(
    "loss",
    "V = 8, 2 positions",
    {"positions": 2},
    {"positions": 6},
    {
        "naive": Measurement(_samples(2.0, 4.0), 1e-6, peak_bytes=300 * 2**20, pass_flop=3.0),
        "ours": Measurement(_samples(1.0, 3.0), 2e-6, peak_bytes=10 * 2**20, pass_flop=2.4, hinted_wrong=0.0123),
        "theirs": Measurement(_samples(4.0, 8.0), 3e-6),
    },
)


def test_the_table_holds_all_that_was_measured() -> None:
    assert to_markdown(COMPARISON).splitlines() == [
        "**loss: V = 8, 2 positions**",
        "(memory with 6 positions)",
        "",
        "|  | cpu time / naive | wall time / naive | cpu s | peak memory | FLOP | hinted wrong | error |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
        "| naive | 1.00 (1.00–1.00) | 1.00 (1.00–1.00) | 3 | 300 MB (100.0%) | 3.00 U | – | 1e-06 |",
        "| ours | 0.62 (0.50–0.75) | 0.62 (0.50–0.75) | 2 | 10 MB (3.3%) | 2.40 U | 1.2% | 2e-06 |",
        "| theirs | 2.00 (2.00–2.00) | 2.00 (2.00–2.00) | 6 | – | – | – | 3e-06 |",
    ]


def test_pictures_are_drawn() -> None:
    step = Comparison("step", "V = 8, 1 token", {}, {}, COMPARISON.measurements)
    pictures = [
        draw_comparisons([COMPARISON], "caption"),
        draw_comparisons([COMPARISON, COMPARISON, step], "caption"),
        draw_parts({"a": dict.fromkeys(PARTS, 0.1), "b": dict.fromkeys(PARTS, 0.2)}, PARTS, "caption"),
    ]
    sizes = [matplotlib.image.imread(io.BytesIO(picture)).shape for picture in pictures]
    assert sizes[1][0] > sizes[0][0]  # a row for each operation
    assert sizes[1][1] > sizes[0][1]  # a column for each shape
