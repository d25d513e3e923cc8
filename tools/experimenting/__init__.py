"""Parts of `experiment.py`: the plan, the runs, what is measured on them, the intervals and the report."""
