"""Corpus files → prepared rows → batches, and the reference losses scored beside them."""
