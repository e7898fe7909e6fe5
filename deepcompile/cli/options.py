"""`deepcompile options`: the table of options and the values in force here."""

from __future__ import annotations

import click

from deepcompile.cli.output import json_option, print_json, table
from deepcompile.options import Options, option_table


@click.command(epilog="Example: DEEPCOMPILE_VERIFY=1 deepcompile options")
@json_option
def options(as_json: bool) -> None:
    """All options with their default, environment variable and the value in force here."""
    values = Options.resolve().to_dict()
    rows = option_table()
    if as_json:
        fields = ("name", "kind", "default", "env", "doc")
        described = [{f: getattr(r, f) for f in fields} | {"value": values[r.name]} for r in rows]
        print_json("options", options=described)
        return
    defaults = Options().to_dict()
    lines = []
    for row in rows:
        differs = values[row.name] != defaults[row.name]
        now = str(values[row.name]) if differs else ""
        lines.append((row.name, row.kind, str(row.default), now, row.env, row.doc))
    click.echo(table(("OPTION", "TYPE", "DEFAULT", "HERE", "VARIABLE", "MEANING"), lines))
