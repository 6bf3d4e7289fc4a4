"""Benchmarks, how models are scored on them, and what the stored scores say."""
