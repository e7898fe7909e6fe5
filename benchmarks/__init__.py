"""Benchmarks of deepcompile against eager and Inductor: `python -m benchmarks.run`."""
