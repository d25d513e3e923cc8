"""Held-out metrics as a short table for the terminal."""


def metrics_table(metrics: dict[str, float]) -> str:
    """Format metrics named `set/metric` or `set/metric/part`, a line for each set and metric, parts side by side."""
    lines: dict[str, list[str]] = {}
    for name, value in metrics.items():
        held_out, metric, *part = name.split("/")
        cell = f"{part[-1].replace('_', ' ')} {value:.3f}" if part else f"{value:.3f}"
        lines.setdefault(f"{held_out:12} {' '.join([metric, *part[:-1]]):12}", []).append(cell)
    return "\n".join(f"{title} {'   '.join(cells)}" for title, cells in lines.items())
