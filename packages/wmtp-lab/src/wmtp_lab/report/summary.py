"""A run in a sentence and in a row of a table."""

from statistics import median

from wmtp_lab.report.runs import Run
from wmtp_lab.tables import DASH, number, percent

_AUC_CLAUSES = {
    "excess_auc": "excess loss tells clean from noise",
    "value_auc": "the value head tells good files from bad ones",
}


def held_out_loss(run: Run) -> tuple[str, str] | None:
    """Return which held-out loss stands for the run: its metric and a name for it in words.

    A set without labelled noise if there is one, else the clean tokens of a noisy set; None without held-out sets.
    """
    losses = [(f"{name}/ce", name) for name in run.evaluation_sets if not run.final_heads(f"{name}/clean_ce")]
    losses += [(f"{name}/clean_ce", f"{name}, its clean tokens") for name in run.evaluation_sets]
    return losses[0] if losses else None


def result_sentence(run: Run) -> str:
    """Return what came out, in plain words; every number is computed from the run's own records."""
    clauses = [_loss_clause(run), _kept_clause(run)]
    for metric, what in _AUC_CLAUSES.items():
        if values := run.final(metric):
            held_out, value = next(iter(values.items()))
            clauses.append(f"on {held_out}, {what} with an AUC of {number(value, 2)} (chance: 0.50)")
    return "; ".join(clause for clause in clauses if clause) + "."


def table_row(run: Run, horizon: int) -> list[str]:
    """Return the cells of `table_head`."""
    scalars, found = run.scalars, held_out_loss(run)
    cells = [run.name, run.algo, f"{run.steps:,}", DASH, DASH]
    if "train/tokens_per_second" in scalars and "train/step_seconds" in scalars:
        rates, seconds = scalars["train/tokens_per_second"].values, scalars["train/step_seconds"].values
        cells[3:] = [_count(run.steps * round(rates[0] * seconds[0])), f"{median(rates):,.0f}"]
    losses = run.final_heads(found[0]) if found else {}
    cells += [found[1] if found else DASH, *(number(losses.get(h), 2) for h in range(horizon))]
    shares = run.final("noise/kept/clean") if selects(run) else {}
    cells.append(percent(next(iter(shares.values()))) if shares else DASH)
    return cells + [number(next(iter(run.final(name).values()), None), 2) for name in ("excess_auc", "value_auc")]


def table_head(horizon: int) -> list[str]:
    """Return titles of the columns, for runs of up to `horizon` heads."""
    heads = [f"head {h}" for h in range(horizon)]
    first = ["Run", "Algorithm", "Steps", "Tokens", "Tokens/s", "Held-out set"]
    return [*first, *heads, "Clean kept", "Excess AUC", "Value AUC"]


def selects(run: Run) -> bool:
    """Return whether the run ever gave a prediction no weight at all."""
    return any(value < 1 for series in run.heads("selected_ratio").values() for value in series.values)


def _loss_clause(run: Run) -> str:
    found = held_out_loss(run)
    curves, place = run.heads("ce"), "training text"
    if found and any(len(series.steps) > 1 for series in run.heads(f"evaluation/{found[0]}").values()):
        curves, place = run.heads(f"evaluation/{found[0]}"), f"held-out text ({found[1]})"
    fell = sum(series.values[-1] < series.values[0] for series in curves.values())
    who = (
        ""
        if fell == len(curves) == 1
        else " for every head"
        if fell == len(curves)
        else f" for {fell} of {len(curves)} heads"
    )
    ends = {h: (number(series.values[0], 2), number(series.values[-1], 2)) for h, series in curves.items()}
    changes = ", ".join(f"head {h} {first}\u00a0→\u00a0{last}" for h, (first, last) in ends.items())
    steps = next(iter(curves.values())).steps
    clause = f"from step {steps[0]} to {steps[-1]:,} the loss on {place} fell{who} ({changes}, in nats per token)"
    if found and place == "training text":
        finals = ", ".join(number(value, 2) for value in run.final_heads(found[0]).values())
        clause += f", and on held-out text ({found[1]}) it ends at {finals}"
    return clause


def _kept_clause(run: Run) -> str:
    shares = run.final("noise/kept/clean") if selects(run) else {}
    if not shares:
        return ""
    held_out, clean = next(iter(shares.items()))
    start = f"{held_out}/noise/kept/"
    kinds = {name.removeprefix(start): v for name, v in run.metrics.items() if name.startswith(start)}
    del kinds["clean"]
    low, high = min(kinds, key=kinds.__getitem__), max(kinds, key=kinds.__getitem__)
    noise = f"{percent(kinds[low])} ({low}) to {percent(kinds[high])} ({high})" if low != high else percent(kinds[low])
    return (
        f"on {held_out}, the later heads keep {percent(clean)} of the predictions of clean tokens and {noise} of noise"
    )


def _count(tokens: int) -> str:
    return f"{tokens / 1e9:.2f} B" if tokens >= 1e9 else f"{tokens / 1e6:.2f} M" if tokens >= 1e5 else f"{tokens:,}"
