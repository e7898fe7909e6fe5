"""`deepcompile completion`: what a shell needs to complete words. No torch is imported for it."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from deepcompile.cli.output import json_option, print_json

_PLACES = {
    "bash": 'eval "$(deepcompile completion bash)"  in ~/.bashrc',
    "zsh": 'eval "$(deepcompile completion zsh)"  in ~/.zshrc',
    "fish": "deepcompile completion fish > ~/.config/fish/completions/deepcompile.fish",
}


@click.command(epilog="\n\n".join(["Examples:", *("\b\n" + text for text in _PLACES.values())]))
@click.argument("shell", type=click.Choice(list(_PLACES)))
@json_option
def completion(shell: str, as_json: bool) -> None:
    """Print the script that makes SHELL complete commands, options, runs, graphs and passes."""
    from deepcompile.cli.main import COMPLETE, cli

    found = get_completion_class(shell)
    assert found is not None
    completer = found(cli, {}, "deepcompile", COMPLETE)
    script = completer.source_template % completer.source_vars()
    if as_json:
        print_json("completion", shell=shell, script=script, place=_PLACES[shell])
    else:
        click.echo(script)
