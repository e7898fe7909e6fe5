"""What ATen nodes mean in kernel IR: views as index maps, scalar rules, reductions, the builder.

Importing the package registers all scalar rules; see `rules`.
"""

from __future__ import annotations

from . import activations, arithmetic, copies, creation, indexing, philox

__all__ = ["activations", "arithmetic", "copies", "creation", "indexing", "philox"]
