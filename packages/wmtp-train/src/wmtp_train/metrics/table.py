"""Held-out figures as a short table for the terminal."""


def metrics_table(figures: dict[str, float]) -> str:
    """Figures named `set/figure` or `set/figure/part`, one line each of set and figure, with the parts side by side."""
    lines: dict[str, list[str]] = {}
    for name, value in figures.items():
        held_out, figure, *part = name.split("/")
        cell = f"{part[-1].replace('_', ' ')} {value:.3f}" if part else f"{value:.3f}"
        lines.setdefault(f"{held_out:12} {' '.join([figure, *part[:-1]]):12}", []).append(cell)
    return "\n".join(f"{title} {'   '.join(cells)}" for title, cells in lines.items())
