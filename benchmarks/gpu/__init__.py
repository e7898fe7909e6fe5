"""Benchmarks on a GPU against eager, Inductor and Liger: `python -m benchmarks.gpu`."""
