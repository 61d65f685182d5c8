"""What a role takes of the machine that it runs on, beside sockets and files: a simulation gives another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import trio
from attrs import field, frozen

from sapflow.monitor.control import Actions, Status, serve_control
from sapflow.monitor.process import ProcessFigures
from sapflow.runtime.drain import Drain


class ServeControl(Protocol):
    """Serves the control plane until cancelled; `started` gives where it listens."""

    async def __call__(
        self,
        address: str,
        role: str,
        status: Status,
        *,
        pages: Mapping[str, Callable[[str], dict[str, Any]]] | None = None,
        actions: Actions | None = None,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> None: ...


class Figures(Protocol):
    """Figures of this process: `run()` keeps what must be measured all the time."""

    async def run(self) -> None: ...

    def read(self) -> dict[str, float]: ...


@frozen
class Machine:
    """The real one, if nothing else is said."""

    serve_control: ServeControl = serve_control
    figures: Callable[[], Figures] = ProcessFigures
    drain: Drain = field(factory=Drain)
    """Asked when the process is to end gently."""
    may_begin: trio.Event = field(factory=lambda: _set())
    """Set when it may take up its work: not at once where it is the successor of one that still does it."""


def _set() -> trio.Event:
    event = trio.Event()
    event.set()
    return event


REAL = Machine()
