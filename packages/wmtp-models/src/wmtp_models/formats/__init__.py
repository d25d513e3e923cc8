"""Formats of others: what a model looks like to them, written and read back."""
