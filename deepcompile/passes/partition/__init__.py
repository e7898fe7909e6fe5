"""partition of the compiler; see the module docstrings."""
