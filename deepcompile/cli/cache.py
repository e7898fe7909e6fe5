"""`deepcompile cache`: where built kernels are, how large that is, and removing them."""

from __future__ import annotations

import click

from deepcompile.cache_dir import cache_dir, clear, entries
from deepcompile.cli.output import json_option, print_json
from deepcompile.options import Options, format_size


@click.group(epilog="Example: deepcompile cache size")
def cache() -> None:
    """Look after the cache of built kernels."""


@cache.command(epilog="Example: deepcompile cache path")
@json_option
def path(as_json: bool) -> None:
    """The folder of the cache."""
    folder = str(cache_dir())
    if as_json:
        print_json("cache path", path=folder)
    else:
        click.echo(folder)


@cache.command(epilog="Example: deepcompile cache size --json")
@json_option
def size(as_json: bool) -> None:
    """How much is in the cache and how much may be."""
    options = Options.resolve()
    found = entries(cache_dir(options))
    total = sum(entry.size for entry in found)
    if as_json:
        print_json("cache size", bytes=total, entries=len(found), limit=options.cache_size)
        return
    limit = format_size(options.cache_size)
    click.echo(f"{format_size(total)} in {len(found)} entries, at most {limit}")


@cache.command("clear", epilog="Example: deepcompile cache clear")
@json_option
def clear_cache(as_json: bool) -> None:
    """Remove all built kernels; they are built again when needed."""
    folder = cache_dir()
    count = len(entries(folder))
    freed = clear(folder)
    if as_json:
        print_json("cache clear", path=str(folder), bytes=freed, entries=count)
    else:
        click.echo(f"removed {count} entries, {format_size(freed)}, from {folder}")
