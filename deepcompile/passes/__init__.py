"""Graph -> graph rewrites, one capability a file or folder.

A pass module holds the frozen dataclass with its name and options and imports no torch at its top
level; the rewriting itself lives in a sibling module that `run` imports. So the command line can
list passes without paying for torch.
"""

from __future__ import annotations

from collections.abc import Mapping

PASSES: Mapping[str, str] = {
    "batch-updates": "deepcompile.passes.batch_updates:BatchUpdates",
    "functionalise-random": "deepcompile.passes.functionalise_random:FunctionaliseRandom",
    "partition": "deepcompile.passes.partition:Partition",
    "canonicalise": "deepcompile.passes.canonicalise:Canonicalise",
    "fuse-rows": "deepcompile.passes.fuse_rows:FuseRows",
}
"""Where each pass of our own is declared: kebab-case name -> "module:Class"."""

DEFAULT_PIPELINE = (
    "joint(batch-updates,functionalise-random,partition,canonicalise),graph(canonicalise,fuse-rows)"
)
"""The passes of a compile when `options={"passes": ...}` does not name others."""
