"""Benchmarks of a finished model: HumanEval, and whatever lm-eval knows."""

from wmtp_eval.run import require_benchmarks, run_benchmarks

__all__ = ["require_benchmarks", "run_benchmarks"]
