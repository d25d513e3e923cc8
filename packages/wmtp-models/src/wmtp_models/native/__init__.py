"""Models that ship sequential modules of their own, under the names of their families."""
