"""A report of a finished run: one page, and one picture."""
