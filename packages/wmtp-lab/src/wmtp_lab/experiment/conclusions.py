"""What the intervals show, in plain words, and nothing beyond them."""

from statistics import correlation, mean

from wmtp_lab.experiment.analysis import AXES, Analysis, Axis, accuracy_of, band
from wmtp_lab.experiment.count_models import BIGRAM_TABLE, UNIGRAM_ENTROPY
from wmtp_lab.experiment.decoding import ACCEPTED
from wmtp_lab.experiment.intervals import Interval, change, plus_minus, stand, t_interval, verdict
from wmtp_lab.experiment.plan import REFERENCE
from wmtp_lab.experiment.runs import LOSS
from wmtp_lab.tables import number

_LIMITS = [
    "One corpus of Python code with noise that a program put there, one size of model, one length of training: nothing "
    "here says what happens at another scale or on natural text.",
    "Intervals are Student's 95 % over seeds, which fix initial weights and data order. The corpus, its noise, the "
    "reference and the held-out text are the same for all seeds, so the intervals do not cover them.",
    "Intervals are not corrected for how many there are: one true zero in twenty is expected to look different. A "
    "star in a table marks what does not stand after Holm's correction.",
    "FLOP and time of an arm do not hold the reference's training and its scoring of the corpus, which are done once.",
    "A step's time was measured with one seed's model, and no interval holds its error; the last table has its spread.",
]
_CONSTANT_RATE = (
    "The learning rate is constant after its warm-up, so that every point of a curve may be compared with any other; "
    "losses at the end are higher than a decay would make them."
)
_HEAD_0 = (
    "Head 0 learns every token alike in rho1-wmtp, random and labelled: what these do to it, they do through the "
    "shared trunk. critic-wmtp and softmax-excess weigh it among the others."
)


def limits(analysis: Analysis) -> list[str]:
    """Return what no number of the report can tell."""
    plan = analysis.results.facts["plan"]
    found = [*_LIMITS]
    if plan["train"].get("optimizer", {}).get("schedule") == "constant":
        found.append(_CONSTANT_RATE)
    if not any("from_head" in settings.get("selection", {}) for settings in plan["arms"].values()):
        found.append(_HEAD_0)
    return found


def conclusions(analysis: Analysis) -> list[str]:
    """Return sentences computed from the intervals."""
    if len(analysis.seeds) < 2:
        return ["One seed alone shows no difference: there is no interval, and no conclusion."]
    found = [_counting(analysis), *(_losses(analysis, axis) for axis in AXES), _over_training(analysis)]
    found += [_pair(analysis, arm, other) for arm, other in analysis.pairs if other != analysis.baseline]
    found += [_tokens(analysis), _corrected(analysis), *_decoding(analysis)]
    return [*found, _reference(analysis), _control(analysis)]


def _counting(analysis: Analysis) -> str:
    table = analysis.final(BIGRAM_TABLE, LOSS)
    against = {arm: analysis.difference(arm, BIGRAM_TABLE, LOSS) for arm in analysis.arms}
    above = [
        f"head {head} ({number(analysis.final(analysis.baseline, loss).mean)} and "
        f"{number(analysis.final(UNIGRAM_ENTROPY, loss).mean)})"
        for head, loss in enumerate(analysis.head_losses())
        if analysis.final(analysis.baseline, loss).mean > analysis.final(UNIGRAM_ENTROPY, loss).mean
    ]
    return (
        f"A table of bigrams with back-off, counted on a run's own tokens, has a next-token loss of "
        f"{plus_minus(table)} on clean held-out text. Against it: {_sorted_by_verdict(against, True)} Heads on which "
        f"{analysis.baseline} ends above the entropy of single tokens: {', '.join(above) or 'none'}."
    )


def _losses(analysis: Analysis, axis: Axis) -> str:
    others = _others(analysis.arms, analysis)
    differences = {arm: analysis.difference(arm, analysis.baseline, LOSS, axis) for arm in others}
    what = f"At equal {axis}, next-token loss on clean held-out text against {analysis.baseline}: "
    return what + _sorted_by_verdict(differences, smaller_is_better=True)


def _sorted_by_verdict(differences: dict[str, Interval], smaller_is_better: bool) -> str:
    groups: dict[str, list[str]] = {"better": [], "worse": [], "no difference seen": []}
    for arm, interval in differences.items():
        words = verdict(interval, smaller_is_better)
        groups[words].append(arm if words == "no difference seen" else f"{arm} ({change(interval)})")
    return "; ".join(f"{words}: {', '.join(arms) or 'none'}" for words, arms in groups.items()) + "."


def _pair(analysis: Analysis, arm: str, other: str) -> str:
    parts = []
    for axis in AXES:
        difference = analysis.difference(arm, other, LOSS, axis)
        parts.append(f"{verdict(difference)} at equal {axis} ({change(difference)})")
    later = []
    for head, metric in enumerate(analysis.head_losses()[1:], start=1):
        if later_head := analysis.differences(metric)[arm, other]:
            later.append(f"head {head} {verdict(later_head)} ({change(later_head)})")
    also = f"; of its later heads at equal tokens: {', '.join(later)}" if later else ""
    return f"{arm} against {other}, the same loss: {', '.join(parts)}{also}."


def _over_training(analysis: Analysis) -> str:
    """Say how large the differences from the baseline were at their largest, and how large they are at the end."""
    baseline, parts = analysis.curves(analysis.baseline, LOSS), []
    for arm in _others(analysis.arms, analysis):
        steps = baseline[0].steps
        points = [point.mean for point in band(analysis.curves(arm, LOSS), minus=baseline)]
        widest = max(range(len(points)), key=lambda place: abs(points[place]))
        at = f"{number(points[widest], signed=True)} at step {steps[widest]}"
        parts.append(f"{arm} {at}, {number(points[-1], signed=True)} at the end")
    return f"The largest difference in next-token loss from {analysis.baseline} on the way: {'; '.join(parts)}."


def _tokens(analysis: Analysis) -> str:
    parts = []
    for arm in _others(analysis.arms, analysis):
        shares = analysis.steps_to_baseline(arm, LOSS)
        reached = [share for share in shares if share is not None]
        missed = f"not in {len(shares) - len(reached)} of {len(shares)} seeds"
        parts.append(f"{arm} {missed if len(reached) < len(shares) else plus_minus(t_interval(reached), 2)}")
    return (
        f"Share of its tokens after which the final loss of {analysis.baseline} was reached: {', '.join(parts)}. "
        "The Rho-1 paper reports 5 to 10 times fewer tokens for next-token training, a share of 0.1 to 0.2."
    )


def _corrected(analysis: Analysis) -> str:
    """Say of each family of intervals how many leave out 0, and how many do after Holm's correction."""
    losses = analysis.head_losses()
    families: dict[str, list[tuple[str, Axis]]] = {
        "next-token losses at equal tokens, FLOP and time": [(LOSS, axis) for axis in AXES],
        "losses of all heads at equal tokens": [(loss, "tokens") for loss in losses],
        "accuracy of all heads": [(accuracy_of(loss), "tokens") for loss in losses],
    }
    parts = []
    for family, members in families.items():
        found = [found for member in members for found in analysis.differences(*member).values() if found is not None]
        different = sum(verdict(difference) != "no difference seen" for difference in found)
        parts.append(f"{family} {different} of {len(found)}, corrected {sum(stand(found))}")
    return (
        f"Intervals that leave out 0, and how many do after Holm's correction for all of a family: {'; '.join(parts)}."
    )


def _decoding(analysis: Analysis) -> list[str]:
    """Say how accepted drafts go with the loss of the model that accepts them."""
    arms = analysis.drafting_arms()
    if len(arms) < 3:
        return []
    losses = _ranks([analysis.final(arm, LOSS).mean for arm in arms])
    parts = []
    for name, metric in ACCEPTED.items():
        ranks = _ranks([analysis.final(arm, metric).mean for arm in arms])
        parts.append(f"{name} {number(correlation(losses, ranks), 2, signed=True)}")
    return [
        "Every arm's drafts are judged by that arm's own head 0, so accepted drafts do not compare arms. Their rank "
        f"correlation over {len(arms)} arms with the next-token loss, where above 0 means that the worse model accepts "
        f"more: {', '.join(parts)}."
    ]


def _ranks(values: list[float]) -> list[float]:
    """Return the rank of each value, that of equal ones being their mean."""
    return [mean(place for place, other in enumerate(sorted(values)) if other == value) for value in values]


def _reference(analysis: Analysis) -> str:
    results = analysis.results
    steps = results.facts["reference_steps"]
    flop = steps * analysis.per_step(REFERENCE, "FLOP")
    share = flop / (analysis.steps * analysis.per_step(analysis.baseline, "FLOP"))
    took = f"Training the reference took {number(share, 2)} times the FLOP of one run of {analysis.baseline}, once"
    names = [REFERENCE, *results.facts["plan"].get("other_references", {})]
    losses = [f"{name} {number(results.final(name, None, LOSS))}" for name in names if results.has(name, None, LOSS)]
    return f"{took}; loss of references on the same clean held-out text: {', '.join(losses)}."


def _control(analysis: Analysis) -> str:
    largest = analysis.largest_difference_at_start(LOSS)
    found = f"differ by at most {largest:.0e} nats" if largest else "do not differ in the last digit"
    return f"Before the first step, arms of one seed {found} in that loss."


def _others(arms: list[str], analysis: Analysis) -> list[str]:
    return [arm for arm in arms if arm != analysis.baseline]
