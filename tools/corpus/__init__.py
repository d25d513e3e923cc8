"""Parts of `build_corpus.py`: where text comes from, what is clean, how it is cut, noised and broken."""
