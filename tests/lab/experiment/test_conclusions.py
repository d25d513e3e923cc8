from typing import Any

from wmtp_lab.experiment.analysis import Analysis
from wmtp_lab.experiment.conclusions import conclusions, limits
from wmtp_lab.experiment.results import Row
from wmtp_lab.experiment.runs import LOSS


def test_words_follow_the_intervals(make_results: Any) -> None:
    found = conclusions(Analysis(make_results(also_compare=[("rho1-k0.6", "next-token")])))
    assert found[0] == (
        "A table of bigrams with back-off, counted on a run's own tokens, has a next-token loss of 4.100 ± 0.248 on "
        "clean held-out text. Against it: better: rho1-k0.6 (−0.200 [−0.225, −0.175]); worse: none; no difference "
        "seen: mtp-baseline, next-token. Heads on which mtp-baseline ends above the entropy of single tokens: "
        "head 1 (5.100 and 5.000)."
    )
    assert found[1] == (
        "At equal tokens, next-token loss on clean held-out text against mtp-baseline: "
        "better: rho1-k0.6 (−0.200 [−0.225, −0.175]); worse: none; no difference seen: next-token."
    )
    assert found[2].startswith("At equal FLOP, ")
    assert "better: rho1-k0.6 (−0.500 [" in found[2]
    assert found[4].startswith("The largest difference in next-token loss from mtp-baseline on the way: rho1-k0.6 ")
    assert found[4].endswith("; next-token −0.200 at step 20, +0.000 at the end.")
    assert found[5] == (
        "rho1-k0.6 against next-token, the same loss: no difference seen at equal tokens (−0.200 [−0.437, +0.037]), "
        "worse at equal FLOP (+0.388 [+0.153, +0.622]), worse at equal time (+0.300 [+0.052, +0.548])."
    )
    assert "rho1-k0.6 0.86 ± 0.08, next-token not in 1 of 3 seeds." in found[6]
    assert "took 1.00 times the FLOP of one run of mtp-baseline" in found[-2]
    assert found[-1] == "Before the first step, arms of one seed do not differ in the last digit in that loss."


def test_a_worse_arm_is_called_so(make_results: Any) -> None:
    curves = {"base": [[7, 5, 4, 3.0], [7, 5, 4, 3.1]], "bad": [[7, 5, 4, 3.5], [7, 5, 4, 3.61]]}
    found = conclusions(Analysis(make_results(curves)))
    assert "better: none; worse: bad (+0.505 [+0.441, +0.569]); no difference seen: none." in found[1]
    assert "bad not in 2 of 2 seeds" in found[5]


def test_later_heads_of_a_pair_are_judged_too(make_results: Any) -> None:
    curves = {"base": [[7, 5, 4, 3.0], [7, 5, 4, 3.1]], "a": [[7, 5, 4, 2.0], [7, 5, 4, 2.11]], "b": [[7, 5, 4, 3]] * 2}
    (words,) = [
        text for text in conclusions(Analysis(make_results(curves, [("a", "b")]))) if text.startswith("a against")
    ]
    assert words.endswith("; of its later heads at equal tokens: head 1 better (−0.945 [−1.644, −0.246]).")


def test_limits_are_those_of_the_plan(make_results: Any) -> None:
    results = make_results()
    assert any("Head 0 learns every token alike" in limit for limit in limits(Analysis(results)))
    assert any("learning rate is constant" in limit for limit in limits(Analysis(results)))
    results.facts["plan"]["arms"]["rho1-k0.6"] = {"selection": {"from_head": 0}}
    results.facts["plan"]["train"] = {}
    assert not any("Head 0" in limit or "constant" in limit for limit in limits(Analysis(results)))


def test_losses_of_references_are_told(make_results: Any) -> None:
    results = make_results()
    results.facts["plan"]["other_references"] = {"longer": {}}
    results.add([Row("reference", None, LOSS, 60, 3.5), Row("longer", None, LOSS, 60, 3.25)])
    assert conclusions(Analysis(results))[-2].endswith("clean held-out text: reference 3.500, longer 3.250.")


def test_one_seed_gives_no_conclusion(make_results: Any) -> None:
    found = conclusions(Analysis(make_results({"a": [[7, 5, 4, 3]], "b": [[7, 5, 4, 1]]})))
    assert found == ["One seed alone shows no difference: there is no interval, and no conclusion."]


def test_what_a_correction_leaves_is_counted(make_results: Any) -> None:
    """One difference is far from 0 beside its spread; two have p = 0.035, which twice is no longer below 0.05."""
    ends = {"base": (3.0, 3.1, 3.2), "clear": (2.001, 2.1, 2.2), "a": (2.9, 2.95, 3.0), "b": (2.9, 2.95, 3.0)}
    curves = {arm: [[7, 5, 4, loss] for loss in losses] for arm, losses in ends.items()}
    (words,) = [text for text in conclusions(Analysis(make_results(curves))) if "Holm" in text]
    assert "; losses of all heads at equal tokens 6 of 6, corrected 2; " in words


def test_accepted_drafts_go_with_the_loss_of_their_judge(make_results: Any) -> None:
    """The fixture gives later arms fewer accepted drafts; here they also have the lower losses."""
    falling = {name: [[7, 5, 4, loss], [7, 5, 4, loss + 0.01]] for name, loss in (("a", 3.0), ("b", 2.0), ("c", 1.0))}
    (words,) = [text for text in conclusions(Analysis(make_results(falling))) if "rank correlation" in text]
    assert words.endswith("accepts more: greedy +1.00, sampled +1.00, on the text +1.00.")
