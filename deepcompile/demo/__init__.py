"""`python -m deepcompile.demo`: one transformer trained in eager and compiled, side by side."""
