"""Options and outputs that `decode` and `tail` share; what concerns the meaning of records is in `meaning.py`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from sapflow.errors import SapflowError
from sapflow.flows.formats import FORMATS, Writer

TOLD = 50
"""Names of what was left out that are told."""
FORMAT = click.option("--format", "format_", type=click.Choice(FORMATS), default="jsonl", show_default=True)
FIELDS = click.option("--fields", help="Only these fields, by name, separated by commas.")
OUT = click.option("-o", "--output", type=click.Path(path_type=Path), help="A file instead of standard output.")


def open_output(output: Path | None, stack: ExitStack) -> BinaryIO:
    """A file, or standard output. Raises SapflowError, also from the stack: for what the disk says while it is used."""
    stack.enter_context(_naming(output))
    return sys.stdout.buffer if output is None else stack.enter_context(output.open("wb"))


@contextmanager
def _naming(output: Path | None) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        # Whoever read the output has had enough; what is buffered is not to be tried again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(0) from None
    except OSError as error:
        what = f"{output or 'standard output'} cannot be written: {error.strerror}; the last records are not in it"
        raise SapflowError(what) from error


def read_token(path: Path) -> str:
    """A credential out of its file. Raises SapflowError."""
    try:
        return path.read_text().strip()
    except OSError as error:
        raise SapflowError(f"no credential: {path}: {error.strerror}; give one with --token-file") from error
    except UnicodeDecodeError:
        raise SapflowError(f"no credential: {path} is no text; give the file of a token with --token-file") from None


def field_names(fields: str | None) -> Sequence[str] | None:
    """What --fields names; None when it is not given."""
    return None if fields is None else [name.strip() for name in fields.split(",") if name.strip()]


def finish(writer: Writer) -> None:
    """Close the output, and tell what it had no place for."""
    writer.close()
    if writer.left_out:
        names = sorted(writer.left_out)
        more = f" and {len(names) - TOLD:,} more" if len(names) > TOLD else ""
        told = ", ".join(names[:TOLD]) + more
        click.echo(f"sapflow: left out, for the output has no column for them: {told}", err=True)
        click.echo("sapflow: name the columns you want with --fields, or use --format jsonl", err=True)
