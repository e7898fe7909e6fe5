"""`python -m deepcompile`, the same as the console script."""

from __future__ import annotations

from deepcompile.cli.start import main

if __name__ == "__main__":
    main()
