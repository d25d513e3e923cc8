"""Progress bars where nobody watches: one line a minute, instead of a line that is written over ten times a second."""

import sys

from tqdm import tqdm

SECONDS = 60
"""The least time between two lines of a bar."""


def print_lines_off_terminal() -> None:
    """Where stderr is no terminal, let every bar of this process print a line a minute, other libraries' bars too.

    A line has what the bar has: what it does, how far it is, time left, rate and figures. A bar that is done within a
    minute prints nothing; one that took longer also says how it ended.
    """
    if not sys.stderr.isatty():
        # In the class that `datasets` and lm-eval inherit: they take no argument that would reach their bars.
        tqdm.display, tqdm.close = _display, _close


def _display(bar: tqdm, msg: str | None = None, pos: int | None = None) -> None:
    """Stand in for tqdm's own, which is called at the start, ten times a second, and for every new figure."""
    now = bar._time()
    if not hasattr(bar, "line_time"):
        bar.line_time, bar.line_n, bar.has_lines = now, bar.n, False
    elif now - bar.line_time >= SECONDS:
        _print(bar, now)


def _close(bar: tqdm) -> None:
    if getattr(bar, "disable", True):  # as tqdm: a bar that was refused its arguments has none
        return
    bar.disable = True
    bar._decr_instances(bar)
    if getattr(bar, "has_lines", False) and bar.n > bar.line_n:  # a bar with a delay may never have been shown
        _print(bar, bar._time())


def _print(bar: tqdm, now: float) -> None:
    # Rate and time left are of the time since the last line. tqdm's are of the last moments: after a pause for an
    # evaluation they would tell of hours.
    rate = (bar.n - bar.line_n) / max(now - bar.line_time, 1e-9)
    bar.line_time, bar.line_n, bar.has_lines = now, bar.n, True
    bar.fp.write(f"{bar.format_meter(**bar.format_dict | {'rate': rate})}\n")
    bar.fp.flush()
