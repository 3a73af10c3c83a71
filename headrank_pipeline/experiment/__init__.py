"""Benchmarks as data, the resumable runner, and the evaluation of what it wrote."""
