"""Packed rows: a corpus tokenised and packed once, in an Arrow folder that is found again by its content."""
