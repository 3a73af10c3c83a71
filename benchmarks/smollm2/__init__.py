"""The parts of benchmarks/smollm2_model.py."""
