"""Losses per token and head: dense (the oracle), fused (the fast one), and their weighted mean."""
