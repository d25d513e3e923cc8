from typing import Any

import pytest
from matplotlib.colors import to_hex

from wmtp_lab.experiment.analysis import Analysis
from wmtp_lab.experiment.loss_figures import (
    difference_curves,
    final_differences,
    head_differences,
    learning_curves,
    tokens_to_baseline,
)
from wmtp_lab.plots import arm_styles

COUNTED = ["unigram entropy", "bigram table"]


@pytest.fixture
def analysis(make_results: Any) -> Analysis:
    return Analysis(make_results(also_compare=[("rho1-k0.6", "next-token")]))


def test_curves_over_tokens_flop_and_time(analysis: Analysis) -> None:
    tokens, flop, time, *head_1 = learning_curves(analysis).axes
    for axes in (tokens, flop, time):
        assert [line.get_label() for line in axes.lines] == [*analysis.arms, *COUNTED]
        assert len(axes.collections) == 3  # bands
        assert axes.lines[0].get_ydata() == pytest.approx([7.1, 5.1, 4.6, 4.1])
        assert [line.get_ydata()[0] for line in axes.lines[3:]] == pytest.approx([5.0, 4.1])
    assert tokens.lines[0].get_xdata() == pytest.approx([0, 0.01, 0.02, 0.03])
    assert flop.lines[1].get_xdata() == pytest.approx([0, 800e-12, 1600e-12, 2400e-12])
    assert time.lines[0].get_xdata() == pytest.approx([0, 11 / 60, 22 / 60, 33 / 60])
    assert [line.get_label() for line in head_1[0].lines] == ["mtp-baseline", "rho1-k0.6", *COUNTED]
    assert head_1[1].lines[0].get_ydata() == pytest.approx([8.1, 6.1, 5.6, 5.1])
    assert head_1[1].lines[-1].get_ydata()[0] == pytest.approx(6.1)
    assert len({axes.get_ylim() for axes in (tokens, flop, time, *head_1)}) == 1


def test_difference_curves_have_a_panel_for_each_other_arm(analysis: Analysis) -> None:
    panels = difference_curves(analysis).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["rho1-k0.6", "next-token"]
    assert panels[0].lines[1].get_ydata() == pytest.approx([0, 0, -0.2, -0.2])


def test_final_differences_stand_at_their_means_and_ends(analysis: Analysis) -> None:
    tokens, flop, _ = final_differences(analysis).axes
    whisker, dot = tokens.lines[1:3]  # after the line at zero
    assert dot.get_xdata() == pytest.approx([-0.2])
    assert whisker.get_xdata() == pytest.approx([-0.2248, -0.1752], abs=1e-4)
    assert flop.lines[2].get_xdata() == pytest.approx([-0.5])
    names = ["rho1-k0.6", "next-token", "rho1-k0.6\nagainst next-token"]
    assert [label.get_text() for label in tokens.get_yticklabels()] == names


def test_a_missing_head_leaves_its_row_empty(analysis: Analysis) -> None:
    head_0, head_1 = head_differences(analysis).axes
    assert len(head_0.lines) == 1 + 2 * 3
    assert len(head_1.lines) == 1 + 2
    assert head_0.get_xlim() == head_1.get_xlim()
    assert [label.get_text() for label in head_0.get_yticklabels()][2] == "rho1-k0.6\nagainst next-token"


def test_bars_show_the_share_or_that_it_was_not_reached(analysis: Analysis) -> None:
    (axes,) = tokens_to_baseline(analysis).axes
    assert [bar.get_hatch() for bar in axes.patches] == [None, None, "////"]
    assert axes.patches[1].get_width() == pytest.approx(0.863, abs=1e-3)
    assert "not reached in 1 of 3 seeds" in axes.texts[2].get_text()


def test_one_seed_is_drawn_without_bands(make_results: Any) -> None:
    analysis = Analysis(make_results({"a": [[7, 5, 4, 3.0]], "b": [[7, 5, 4, 3.5]]}))
    assert not learning_curves(analysis).axes[0].collections
    assert len(final_differences(analysis).axes[0].lines) == 2  # zero and a dot


def test_arms_have_colors_of_their_own_and_very_many_differ_in_their_lines() -> None:
    arms = [f"arm {i}" for i in range(20)]
    styles = arm_styles(arms, "arm 0")
    assert len({styles[arm].color for arm in arms[:14]}) == 14
    assert len(set(styles.values())) == 20


def test_an_arm_has_one_color(analysis: Analysis) -> None:
    assert len({style.color for style in analysis.styles.values()}) == 3
    drawn = final_differences(analysis).axes[0].lines[1].get_color()
    assert to_hex(drawn) == analysis.styles["rho1-k0.6"].color
