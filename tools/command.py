"""A tool as a command: what goes wrong in the world is one line, never a traceback."""

from __future__ import annotations

import math
import sys
from typing import Any

import click

from sapflow.errors import SapflowError

WORLD = (SapflowError, OSError)


class Number(click.ParamType):
    """A finite number of at least `least`, or more than it."""

    name = "number"

    def __init__(self, least: float, *, more: bool = False) -> None:
        self._least = least
        self._more = more

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Click's own check lets nan and inf through."""
        try:
            found = float(value)
        except ValueError:
            self.fail(f"'{value}' is not a number", param, ctx)
        if not math.isfinite(found) or found < self._least or (self._more and found == self._least):
            self.fail(f"{value} is not {'more than' if self._more else 'at least'} {self._least:g}", param, ctx)
        return found


def run(command: click.Command) -> None:
    """Run it and exit: 0 done, 1 the work failed, 2 wrong use, 130 stopped by Ctrl-C."""
    try:
        sys.exit(command.main(standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        sys.exit(130)
    except WORLD as error:
        click.echo(f"{command.name}: {error}", err=True)
        sys.exit(1)
    except BaseExceptionGroup as group:
        stopped, rest = group.split(KeyboardInterrupt)
        if rest is None:
            click.echo("stopped", err=True)
            sys.exit(130)
        known, unknown = rest.split(WORLD)
        if known is None or unknown is not None:
            raise
        click.echo(f"{command.name}: {_first(known)}", err=True)
        sys.exit(130 if stopped else 1)


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
