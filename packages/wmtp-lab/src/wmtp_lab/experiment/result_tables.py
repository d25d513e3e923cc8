"""The tables of an experiment's report."""

from itertools import chain
from statistics import mean

from wmtp_lab.experiment.analysis import AXES, KEPT, PHASES, Analysis, Axis, accuracy_of
from wmtp_lab.experiment.count_models import BIGRAM_TABLE, UNIGRAM_ENTROPY
from wmtp_lab.experiment.decoding import ACCEPTED
from wmtp_lab.experiment.intervals import Interval, change, judged, plus_minus, stand, t_interval, verdict
from wmtp_lab.experiment.plan import REFERENCE
from wmtp_lab.experiment.runs import LOSS
from wmtp_lab.measure.stopwatch import spread
from wmtp_lab.tables import DASH, Table

_STAR = " *: leaves out 0 by itself, and not after Holm's correction for all differences of this table."


def tables(analysis: Analysis) -> list[Table]:
    """Return all tables that the results have something for."""
    made = [
        _losses(analysis),
        _count_models(analysis),
        *(_heads(analysis, axis) for axis in AXES),
        _accuracy(analysis),
        _other_text(analysis),
        _steps_to_baseline(analysis),
        _selection(analysis),
        _kinds(analysis),
        _decoding(analysis),
        _costs(analysis),
    ]
    return [table for table in made if table.rows]


def _losses(analysis: Analysis) -> Table:
    by_axis = [analysis.differences(LOSS, axis) for axis in AXES]
    rows = [[analysis.baseline, plus_minus(analysis.final(analysis.baseline, LOSS)), *([DASH] * len(AXES))]]
    judged_rows = _judged([[differences[pair] for differences in by_axis] for pair in analysis.pairs])
    for (arm, other), cells in zip(analysis.pairs, judged_rows, strict=True):
        rows.append([_pair(arm, other, analysis), plus_minus(analysis.final(arm, LOSS)), *cells])
    note = (
        "Nats per token at the end of training; then the difference from the baseline (or the other arm named), paired "
        "by seed, where the cheaper of the two has spent its tokens, FLOP or time." + _STAR
    )
    head = ["arm", "loss", *(f"difference at equal {axis}" for axis in AXES)]
    return Table("Next-token loss on clean held-out text (head 0)", note, head, rows)


def _count_models(analysis: Analysis) -> Table:
    losses = analysis.head_losses()
    names = (UNIGRAM_ENTROPY, BIGRAM_TABLE)
    rows = [[name, *(plus_minus(analysis.final(name, loss)) for loss in losses)] for name in names]
    against = [
        [analysis.difference(arm, BIGRAM_TABLE, loss) if arm in analysis.arms_with(loss) else None for loss in losses]
        for arm in analysis.arms
    ]
    rows += [[f"{arm} against it", *cells] for arm, cells in zip(analysis.arms, _judged(against), strict=True)]
    note = (
        "Nats per token on clean held-out text. The table of bigrams with back-off is counted on the tokens that a run "
        "of the same seed is trained on, for head h on pairs of tokens h + 1 apart. The entropy is that of the "
        "held-out targets by themselves: what ignores its context cannot come below it." + _STAR
    )
    head = ["arm", *(f"head {h}" for h in range(len(losses)))]
    return Table("What counting reaches", note, head, rows)


def _accuracy(analysis: Analysis) -> Table:
    metrics = [accuracy_of(loss) for loss in analysis.head_losses()]
    own = (analysis.baseline, BIGRAM_TABLE)
    rows = [[name, *(plus_minus(analysis.final(name, metric)) for metric in metrics)] for name in own]
    by_head = [analysis.differences(metric) for metric in metrics]
    found = [[differences[pair] for differences in by_head] for pair in analysis.pairs]
    judged_rows = _judged(found, smaller_is_better=False)
    rows += [[_pair(*pair, analysis), *cells] for pair, cells in zip(analysis.pairs, judged_rows, strict=True)]
    note = (
        "How often the most probable token is the text's, a share, on clean held-out text at the end of training; of "
        "the other arms the difference, paired by seed." + _STAR
    )
    head = ["arm", *(f"head {h}" for h in range(len(metrics)))]
    return Table("Accuracy of each head", note, head, rows)


def _heads(analysis: Analysis, axis: Axis) -> Table:
    losses = analysis.head_losses()
    by_head = [analysis.differences(loss, axis) for loss in losses]
    rows = [[analysis.baseline, *(plus_minus(analysis.final(analysis.baseline, loss)) for loss in losses)]]
    judged_rows = _judged([[differences[pair] for differences in by_head] for pair in analysis.pairs])
    rows += [[_pair(*pair, analysis), *cells] for pair, cells in zip(analysis.pairs, judged_rows, strict=True)]
    note = (
        "Of the baseline the loss at its end, of the other arms the difference from it (or from the other arm named) "
        f"at equal {axis}, paired by seed." + _STAR
    )
    head = ["arm", *(f"head {h}" for h in range(len(losses)))]
    return Table(f"Loss of each head on clean held-out text, at equal {axis}", note, head, rows)


def _other_text(analysis: Analysis) -> Table:
    metrics = {
        "noisy text": "evaluation/noisy/ce/head_0",
        "its clean tokens": "evaluation/noisy/clean_ce/head_0",
        "generated code": "evaluation/generated/ce/head_0",
    }
    rows = [[arm, *(plus_minus(analysis.final(arm, m)) for m in metrics.values())] for arm in analysis.arms]
    note = (
        "Head 0, nats per token at the end of training. Generated code is what programs wrote, noise of its own kind."
    )
    return Table("Next-token loss on other held-out text", note, ["arm", *metrics], rows)


def _steps_to_baseline(analysis: Analysis) -> Table:
    rows = []
    for arm in analysis.arms:
        shares = analysis.steps_to_baseline(arm, LOSS)
        reached = [share for share in shares if share is not None]
        missed = f"more than 1 in {len(shares) - len(reached)} of {len(shares)}"
        share = missed if len(reached) < len(shares) else plus_minus(t_interval(reached))
        rows.append([arm, f"{len(reached)} of {len(shares)}", share])
    note = (
        "Tokens until the baseline's final loss of head 0 was first reached, over the baseline's tokens, seed by seed. "
        "Its own row says how much of a share below 1 is the curve's unevenness."
    )
    return Table("Tokens to the baseline's final loss", note, ["arm", "seeds that reached it", "share of tokens"], rows)


def _selection(analysis: Analysis) -> Table:
    metrics = {"precision": "noise/precision", "recall": "noise/recall", "AUC": "excess_auc"}
    rows = []
    for arm in analysis.arms:
        phases = [_by_phase(analysis, arm, f"evaluation/noisy/{metric}") for metric in metrics.values()]
        if any(any(of_metric) for of_metric in phases):
            rows.append([arm, *(_or_dash(interval) for interval in chain.from_iterable(phases))])
    head = ["arm", *(f"{name}, {phase}" for name in metrics for phase in PHASES)]
    note = (
        "Heads 1 and up on noisy held-out text, clean tokens being what should be kept. AUC: probability that a clean "
        "token's excess loss is above a noisy one's, where the arm has a reference; chance is 0.5."
    )
    return Table("Selection against the noise labels, by phase of training", note, head, rows)


def _kinds(analysis: Analysis) -> Table:
    kinds = analysis.kinds()
    metrics = {"": KEPT, ", precision": "evaluation/noisy/noise/precision/", ", AUC": "evaluation/noisy/excess_auc/"}
    rows = []
    for arm in analysis.arms:
        for name, start in metrics.items():
            if analysis.results.metrics(arm, start):
                rows.append([arm + name, *(_or_dash(_by_phase(analysis, arm, start + kind)[-1]) for kind in kinds)])
    note = "Share kept in the last third of training; precision and AUC of clean tokens against this kind alone."
    return Table("Selection by kind of text", note, ["arm", *kinds], rows)


def _decoding(analysis: Analysis) -> Table:
    rows = []
    for arm in analysis.drafting_arms():
        cells = []
        for metric in ACCEPTED.values():
            versus = None if arm == analysis.baseline else analysis.difference(arm, analysis.baseline, metric)
            cells += [plus_minus(analysis.final(arm, metric)), DASH if versus is None else change(versus)]
        rows.append([arm, *cells])
    head = ["arm", *(title for name in ACCEPTED for title in (name, f"{name}: difference"))]
    note = (
        "After training: drafts accepted by a forward that verifies them, where the model goes on from clean held-out "
        "text greedily or at temperature 1, and greedily at every place of that text as it stands. Greedy text of a "
        "small model soon repeats itself, which any head predicts; and the less a model has learned, the simpler is "
        "what it writes, and the easier to draft: read this beside the losses."
    )
    return Table("Accepted drafts per forward", note, head, rows)


def _costs(analysis: Analysis) -> Table:
    series, baseline = analysis.results.series, analysis.baseline
    rows = []
    for arm in (*analysis.arms, REFERENCE):
        flop, seconds = analysis.per_step(arm, "FLOP"), analysis.per_step(arm, "time")
        rounds = [series[name, None, "cost/seconds"].values for name in (arm, baseline)]
        ratios = spread([mine / its for mine, its in zip(*rounds, strict=True)])
        peak = series.get((arm, None, "cost/peak_bytes"))
        rows.append(
            [
                arm,
                f"{flop / 1e9:.3f}",
                f"{flop / analysis.per_step(baseline, 'FLOP'):.3f}",
                f"{seconds:.4g}",
                ratios.text(3),
                DASH if peak is None else f"{mean(peak.values) / 2**20:.0f}",
            ]
        )
    clock = analysis.results.facts["clock"]
    head = ["arm", "GFLOP", "ratio", f"{clock} s", "ratio, lowest and highest", "peak MiB"]
    note = (
        "After any warm-up. FLOP of matrix products, counted by torch in real steps on trained weights; median time of "
        f"{analysis.results.facts['plan']['timed_steps']} steps, those of all arms in turn, and its ratio round by "
        "round; memory of a first step beyond model and data. The reference is trained once, and scored once."
    )
    return Table("What a step costs", note, head, rows)


def _by_phase(analysis: Analysis, arm: str, metric: str) -> list[Interval | None]:
    """Return the metric by phase; None in each where the arm lacks it."""
    return analysis.by_phase(arm, metric) if arm in analysis.arms_with(metric) else [None] * len(PHASES)


def _or_dash(interval: Interval | None) -> str:
    return DASH if interval is None else plus_minus(interval, 2)


def _judged(differences: list[list[Interval | None]], smaller_is_better: bool = True) -> list[list[str]]:
    """Return a table's differences with what they show, and a star at what its own number takes back."""
    standing = iter(stand([difference for row in differences for difference in row if difference is not None]))

    def cell(difference: Interval | None) -> str:
        if difference is None:
            return DASH
        taken_back = not next(standing) and difference.is_bounded and verdict(difference) != "no difference seen"
        return judged(difference, smaller_is_better) + "*" * taken_back

    return [[cell(difference) for difference in row] for row in differences]


def _pair(arm: str, other: str, analysis: Analysis) -> str:
    return arm if other == analysis.baseline else f"{arm} against {other}"
