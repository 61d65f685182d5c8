"""What systemd is told of a service: that it is ready, and that it lives (sd_notify(3); a datagram, no library)."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import structlog
import trio

log = structlog.get_logger()


def notify(text: str) -> bool:
    """Tell systemd; False when this process was not started by it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            sock.sendto(text.encode(), address)
    except OSError as error:
        log.warning("systemd not told", what=text, reason=str(error))
        return False
    return True


async def watchdog(answers: Callable[[float], bool]) -> None:
    """Tell systemd twice in each of its intervals that this process lives; not while `answers(seconds)` is false.

    This task runs on the event loop, so a loop that hangs tells nothing either.
    """
    interval_s = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
    mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    if not interval_s or not mine:
        return
    while True:
        if answers(interval_s / 2):
            notify("WATCHDOG=1")
        await trio.sleep(interval_s / 2)
