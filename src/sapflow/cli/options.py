"""Options and outputs that `decode` and `tail` share; what concerns the meaning of records is in `meaning.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import click

from sapflow.errors import SapflowError
from sapflow.flows.formats import FORMATS, Writer

FORMAT = click.option("--format", "format_", type=click.Choice(FORMATS), default="jsonl", show_default=True)
FIELDS = click.option("--fields", help="Only these fields, by name, separated by commas.")
OUT = click.option("-o", "--output", type=click.Path(path_type=Path), help="A file instead of standard output.")


def open_output(output: Path | None, stack: ExitStack) -> BinaryIO:
    """A file, or standard output. Raises SapflowError."""
    if output is None:
        return sys.stdout.buffer
    try:
        return stack.enter_context(output.open("wb"))
    except OSError as error:
        raise SapflowError(f"{output} cannot be written: {error.strerror}") from error


def field_names(fields: str | None) -> Sequence[str] | None:
    """What --fields names; None when it is not given."""
    return None if fields is None else [name.strip() for name in fields.split(",") if name.strip()]


def finish(writer: Writer) -> None:
    """Close the output, and tell what it had no place for."""
    writer.close()
    if writer.left_out:
        names = ", ".join(sorted(writer.left_out))
        click.echo(f"sapflow: left out, for the output's columns were fixed before they came: {names}", err=True)
        click.echo("sapflow: name the columns you want with --fields, or use --format jsonl", err=True)
