"""`garrison schema`: JSON Schemas for editors."""

from __future__ import annotations

import json

import click

from authz.schema import kinds, schema, whole_schema


@click.command(
    name="schema",
    epilog="""\b
Kinds: those of docs/semantics.md, and `suite`. How editors use it: docs/howto/editor-schemas.md.

\b
Example:
  garrison schema > policy.schema.json
  garrison schema suite > suite.schema.json""",
)
@click.argument("kind", type=click.Choice(kinds()), required=False, metavar="[KIND]")
def print_schema(kind: str | None) -> None:
    """Print the JSON Schema of a KIND of document, of any policy document if none is named."""
    click.echo(json.dumps(whole_schema() if kind is None else schema(kind), indent=2))
