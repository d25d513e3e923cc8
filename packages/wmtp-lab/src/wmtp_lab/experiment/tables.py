"""The numbers of the report as tables, for Markdown and HTML alike."""

from dataclasses import dataclass
from itertools import chain
from statistics import mean, median

from wmtp_lab.experiment.analysis import AXES, KEPT, PHASES, Analysis, Axis
from wmtp_lab.experiment.decoding import ACCEPTED
from wmtp_lab.experiment.intervals import Interval, t_interval, verdict
from wmtp_lab.experiment.plan import REFERENCE
from wmtp_lab.experiment.runs import LOSS

_DASH = "–"


@dataclass(frozen=True)
class Table:
    """Cells as text, with a sentence on what they are."""

    title: str
    note: str
    head: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """Return a heading, the note and the table."""
        lines = [self.head, ["---"] + ["--:"] * (len(self.head) - 1), *self.rows]
        return "\n".join([f"### {self.title}", "", self.note, "", *(f"| {' | '.join(line)} |" for line in lines)])


def tables(analysis: Analysis) -> list[Table]:
    """Return all tables that the results have something for."""
    made = [
        _losses(analysis),
        *(_heads(analysis, axis) for axis in AXES),
        _other_text(analysis),
        _steps_to_baseline(analysis),
        _selection(analysis),
        _kinds(analysis),
        _decoding(analysis),
        _costs(analysis),
    ]
    return [table for table in made if table.rows]


def number(value: float, digits: int = 3, signed: bool = False) -> str:
    """Format a number with a minus sign that is one."""
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "\u2212")


def spread(interval: Interval, digits: int = 3) -> str:
    """Return a mean with half the width of its interval."""
    half = f" ± {interval.high - interval.mean:.{digits}f}" if interval.is_bounded else ""
    return number(interval.mean, digits) + half


def change(interval: Interval, digits: int = 3) -> str:
    """Return a difference with the ends of its interval."""
    ends = f" [{number(interval.low, digits, True)}, {number(interval.high, digits, True)}]"
    return number(interval.mean, digits, True) + (ends if interval.is_bounded else "")


def judged(interval: Interval, smaller_is_better: bool = True, digits: int = 3) -> str:
    """Return a difference and what it shows."""
    words = verdict(interval, smaller_is_better) if interval.is_bounded else "one seed shows nothing"
    return f"{change(interval, digits)} {words}"


def _losses(analysis: Analysis) -> Table:
    rows = [
        [_pair(arm, other, analysis), spread(analysis.final(arm, LOSS))]
        + [judged(analysis.difference(arm, other, LOSS, axis)) for axis in AXES]
        for arm, other in [(analysis.baseline, analysis.baseline), *analysis.pairs]
    ]
    rows[0][2:] = [_DASH] * len(AXES)
    note = (
        "Nats per token at the end of training; then the difference from the baseline (or the other arm named), paired "
        "by seed, where the cheaper of the two has spent its tokens, FLOP or time."
    )
    head = ["arm", "loss", *(f"difference at equal {axis}" for axis in AXES)]
    return Table("Next-token loss on clean held-out text (head 0)", note, head, rows)


def _heads(analysis: Analysis, axis: Axis) -> Table:
    baseline, figures = analysis.baseline, analysis.head_losses()
    rows = [[baseline, *(spread(analysis.final(baseline, figure)) for figure in figures)]]
    for arm, other in analysis.pairs:
        cells = [
            judged(analysis.difference(arm, other, figure, axis))
            if {arm, other} <= set(analysis.arms_with(figure))
            else _DASH
            for figure in figures
        ]
        rows.append([_pair(arm, other, analysis), *cells])
    note = (
        "Of the baseline the loss at its end, of the other arms the difference from it (or from the other arm named) "
        f"at equal {axis}, paired by seed."
    )
    head = ["arm", *(f"head {h}" for h in range(len(figures)))]
    return Table(f"Loss of each head on clean held-out text, at equal {axis}", note, head, rows)


def _other_text(analysis: Analysis) -> Table:
    figures = {
        "noisy text": "evaluation/noisy/ce/head_0",
        "its clean tokens": "evaluation/noisy/clean_ce/head_0",
        "generated code": "evaluation/generated/ce/head_0",
    }
    rows = [[arm, *(spread(analysis.final(arm, figure)) for figure in figures.values())] for arm in analysis.arms]
    note = (
        "Head 0, nats per token at the end of training. Generated code is what programs wrote, noise of its own kind."
    )
    return Table("Next-token loss on other held-out text", note, ["arm", *figures], rows)


def _steps_to_baseline(analysis: Analysis) -> Table:
    rows = []
    for arm in analysis.arms:
        shares = analysis.steps_to_baseline(arm, LOSS)
        reached = [share for share in shares if share is not None]
        whole = len(reached) == len(shares)
        cell = spread(t_interval(reached)) if whole else f"more than 1 in {len(shares) - len(reached)} of {len(shares)}"
        rows.append([arm, f"{len(reached)} of {len(shares)}", cell])
    note = (
        "Tokens until the baseline's final loss of head 0 was first reached, over the baseline's tokens, seed by seed. "
        "Its own row says how much of a share below 1 is the curve's unevenness."
    )
    return Table("Tokens to the baseline's final loss", note, ["arm", "seeds that reached it", "share of tokens"], rows)


def _selection(analysis: Analysis) -> Table:
    names = {"precision": "noise/precision", "recall": "noise/recall", "AUC": "excess_auc"}
    figures = {name: f"evaluation/noisy/{figure}" for name, figure in names.items()}
    rows = []
    for arm in analysis.arms:
        measured = [arm in analysis.arms_with(figure) for figure in figures.values()]
        cells = [
            [_or_dash(interval) for interval in analysis.by_phase(arm, figure)] if there else [_DASH] * len(PHASES)
            for figure, there in zip(figures.values(), measured, strict=True)
        ]
        if any(measured):
            rows.append([arm, *chain.from_iterable(cells)])
    head = ["arm", *(f"{name}, {phase}" for name in figures for phase in PHASES)]
    note = (
        "Heads 1 and up on noisy held-out text, clean tokens being what should be kept. AUC: probability that a clean "
        "token's excess loss is above a noisy one's, where the arm has a reference; chance is 0.5."
    )
    return Table("Selection against the noise labels, by phase of training", note, head, rows)


def _kinds(analysis: Analysis) -> Table:
    kinds = analysis.kinds()
    figures = {"": KEPT, ", precision": "evaluation/noisy/noise/precision/", ", AUC": "evaluation/noisy/excess_auc/"}
    rows = []
    for arm in analysis.arms:
        for name, start in figures.items():
            if analysis.results.figures(arm, start):
                rows.append([arm + name, *(_last_third(analysis, arm, start + kind) for kind in kinds)])
    note = "Share kept in the last third of training; precision and AUC of clean tokens against this kind alone."
    return Table("Selection by kind of text", note, ["arm", *kinds], rows)


def _last_third(analysis: Analysis, arm: str, figure: str) -> str:
    return _or_dash(analysis.by_phase(arm, figure)[-1]) if arm in analysis.arms_with(figure) else _DASH


def _or_dash(interval: Interval | None) -> str:
    return _DASH if interval is None else spread(interval, 2)


def _decoding(analysis: Analysis) -> Table:
    rows = []
    for arm in analysis.drafting_arms():
        cells = []
        for figure in ACCEPTED.values():
            cells.append(spread(analysis.final(arm, figure)))
            versus = analysis.difference(arm, analysis.baseline, figure)
            cells.append(_DASH if arm == analysis.baseline else judged(versus, smaller_is_better=False))
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
        ratios = [mine / its for mine, its in zip(*rounds, strict=True)]
        peak = series.get((arm, None, "cost/peak_bytes"))
        rows.append(
            [
                arm,
                f"{flop / 1e9:.3f}",
                f"{flop / analysis.per_step(baseline, 'FLOP'):.3f}",
                f"{seconds:.4g}",
                f"{median(ratios):.3f} ({min(ratios):.3f}\u2013{max(ratios):.3f})",
                _DASH if peak is None else f"{mean(peak.values) / 2**20:.0f}",
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


def _pair(arm: str, other: str, analysis: Analysis) -> str:
    return arm if other == analysis.baseline else f"{arm} against {other}"
