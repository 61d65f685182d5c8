"""Benchmarks, each side by side with its peer in one run: read the ratios, the machine's speed drifts."""
