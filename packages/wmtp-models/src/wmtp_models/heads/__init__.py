"""The kinds of heads."""
