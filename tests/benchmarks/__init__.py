"""Benchmarks of accuracy and speed: `python -m tests.benchmarks NAME`."""
