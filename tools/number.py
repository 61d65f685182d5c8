"""What the tools' command lines take."""

from __future__ import annotations

import math
from typing import Any

import click


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
