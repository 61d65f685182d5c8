"""How a command ends. What goes wrong in the world is one line that says what and where, never a traceback."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from sapflow.errors import SapflowError, first_of


def run(command: click.Command, name: str) -> NoReturn:
    """Run it with the process's arguments and exit: 0 done, 1 the work failed or was stopped, 2 wrong use."""
    try:
        sys.exit(command.main(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt, SapflowError, OSError) as error:
        _fail(error, name)
    except BaseExceptionGroup as group:
        known, unknown = group.split((KeyboardInterrupt, SapflowError, OSError))
        if known is None or unknown is not None:
            raise
        _fail(first_of(known), name)


def _fail(error: BaseException, name: str) -> NoReturn:
    what: object = error
    if isinstance(error, click.Abort | KeyboardInterrupt):
        # Of work that has an end of its own; what runs until Ctrl-C does not come here.
        what = "stopped before it was done"
    elif isinstance(error, OSError):
        what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error
    click.echo(f"{name}: {what}", err=True)
    sys.exit(1)
