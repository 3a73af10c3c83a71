"""The parts of benchmarks/evidence.py."""
