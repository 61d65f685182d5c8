"""The exits that the configuration names."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import trio

from sapflow.config import ExitConfig
from sapflow.flows.registry import registry

if TYPE_CHECKING:
    from phloem.exits.exits import Exits

Serve = Callable[[trio.abc.Stream, str], Any]
"""The consume door's work on one connection."""


def open_exits(exits: Sequence[ExitConfig], serve: Serve, fleet_token: str) -> Exits | None:
    """Them, reading at the consume door; None where there are none: librdkafka is a large library to load."""
    if not exits:
        return None
    from phloem.exits.exit import Exit
    from phloem.exits.exits import Exits
    from phloem.exits.sending import Sending
    from sapflow.flows.formats.messages import maker

    turn = threading.Lock()

    def made(one: ExitConfig) -> Exit:
        make = maker(one.format, one.fields or None)
        return Exit(one, Sending(one, turn=turn), make, registry(), serve, fleet_token)

    return Exits([made(one) for one in exits])
