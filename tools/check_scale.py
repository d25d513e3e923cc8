"""Compares what tools/scale.py calculates with small models that really run, on a CPU, in about half a minute.

    python tools/check_scale.py

Ends with status 1 where a formula is further off than it says.
"""

import sys

from scaling.small_runs import checks


def main() -> int:
    """Prints a Markdown table, row by row; returns the exit status."""
    print("| | calculated | measured | measured / calculated | allowed |\n|---|--:|--:|--:|--:|")
    agree = True
    for check in checks():
        ratio, allowed = check.measured / check.calculated, f"±{check.tolerance:.0%}" if check.tolerance else "exact"
        print(
            f"| {check.name} | {check.calculated:,.0f} | {check.measured:,.0f} | {ratio:.4f} | {allowed} |", flush=True
        )
        agree = agree and check.holds
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
