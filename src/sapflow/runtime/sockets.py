"""Listening sockets that a process was given by who started it: they outlive it, and its successor is given them too.

So what connects while a process is away, or between one and the next, waits in the accept queue instead of being
refused. Datagrams wait in the socket's buffer.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

SOCKETS_VARIABLE = "SAPFLOW_SOCKETS"
"""Of the environment: `NAME=DESCRIPTOR,…`."""


def told_sockets(sockets: Mapping[str, int]) -> str:
    """The variable's value."""
    return ",".join(f"{name}={number}" for name, number in sockets.items())


def given_socket(name: str) -> socket.socket | None:
    """The socket that was given for something, if one was."""
    for item in os.environ.get(SOCKETS_VARIABLE, "").split(","):
        key, _, descriptor = item.partition("=")
        if key == name and name:
            return socket.socket(fileno=int(descriptor))
    return None
