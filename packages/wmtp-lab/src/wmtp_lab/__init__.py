"""Experiments over many runs, and reports of single ones."""
