"""Listening sockets that a process was given by who started it: they outlive it, and its successor is given them too.

So what connects while a process is away, or between one and the next, waits in the accept queue instead of being
refused. Datagrams wait in the socket's buffer.
"""

from __future__ import annotations

import os
import socket

SOCKETS_VARIABLE = "SAPFLOW_SOCKETS"
"""Of the environment: `NAME=DESCRIPTOR,…`."""


def given_socket(name: str) -> socket.socket | None:
    """The socket that was given for something, if one was."""
    for item in os.environ.get(SOCKETS_VARIABLE, "").split(","):
        key, _, descriptor = item.partition("=")
        if key == name and name:
            return socket.socket(fileno=int(descriptor))
    return None
