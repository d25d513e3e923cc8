"""Held-out metrics as tables for the terminal."""

_UNITS = {
    "ce": "nats/token",
    "clean_ce": "nats/token",
    "accuracy": "share",
    "acceptance": "share",
    "sampled_acceptance": "share",
    "tokens_per_forward": "tokens",
    "sampled_tokens_per_forward": "tokens",
    "noise": "share",
    "excess_auc": "probability",
    "value_auc": "probability",
    "pass@1": "share",
    "pass@10": "share",
    "pass@100": "share",
}
"""Of the metrics that are ours, by their first word; what a task of lm-eval measures, it says itself."""


def metrics_table(metrics: dict[str, float]) -> str:
    """Format metrics named `set/metric/head_h` as one table with a column a head, and all others as a second one."""
    by_head: dict[tuple[str, str], dict[int, float]] = {}
    others: dict[tuple[str, str], float] = {}
    for name, value in metrics.items():
        held_out, _, metric = name.partition("/")
        metric, _, head = metric.rpartition("/head_") if "/head_" in metric else (metric, "", "")
        if head:
            by_head.setdefault((held_out, metric), {})[int(head)] = value
        else:
            others[held_out, metric] = value
    heads = sorted({head for row in by_head.values() for head in row})
    head_rows = [[*_title(*key), *(_number(row.get(head)) for head in heads)] for key, row in by_head.items()]
    other_rows = [[*_title(*key), _number(value)] for key, value in others.items()]
    tables = [
        _table(["set", "metric", "unit", *(f"head {head}" for head in heads)], head_rows),
        _table(["set", "metric", "unit", "value"], other_rows),
    ]
    return "\n\n".join(filter(None, tables))


def _title(held_out: str, metric: str) -> tuple[str, str, str]:
    return held_out, metric, _UNITS.get(metric.split("/")[0], "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    """Return lines in which words stand at the left of their column and figures at the right; "" without rows."""
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    sides = "<<<" + ">" * (len(header) - 3)

    def line(row: list[str]) -> str:
        cells = zip(row, sides, widths, strict=True)
        return "  ".join(f"{cell:{side}{width}}" for cell, side, width in cells).rstrip()

    return "\n".join(map(line, [header, *rows]))
