"""Benchmarks of speed and quality. Their results are in ``results``, with their provenance."""
