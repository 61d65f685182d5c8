"""What meters came through before there was a balancer: DNS that is cached, and HAProxy by least connections."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle

from attrs import define, field

from tools.bench.rivals import await_port, free_port
from tools.fleet import Fleet
from tools.peers import find

TTL_S = 60.0


def collectors(fleet: Fleet) -> dict[str, str]:
    """Where each collector's own link door is, by name."""
    members = fleet.status()["balancer"]["members"]
    return {one["name"]: one["addresses"]["link"] for one in members if one["role"] == "collector"}


@define
class CachedDns:
    """A small model of DNS in turn: each org's resolver keeps an answer for `TTL_S`, whatever becomes of who has it."""

    addresses: list[str]
    _turn: Iterator[str] = field(init=False)
    _answers: dict[str, tuple[float, str]] = field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self._turn = cycle(self.addresses)

    def reach(self, org: str) -> str:
        """Where meters of an org connect now."""
        until, address = self._answers.get(org, (0.0, ""))
        if time.monotonic() >= until:
            address = next(self._turn)
            self._answers[org] = time.monotonic() + TTL_S, address
        return address


@contextmanager
def haproxy(addresses: dict[str, str]) -> Iterator[str]:
    """HAProxy before these collectors: the address of its door. It looks twice a second whether each is there."""
    program, port = find("haproxy"), free_port(socket.SOCK_STREAM)
    assert program is not None, "HAProxy is not installed: python -m tools.peers install haproxy"
    servers = "".join(f"  server {name} {address} check inter 500ms\n" for name, address in addresses.items())
    with ExitStack() as stack:
        config = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".cfg"))
        config.write(
            "global\n  nbthread 1\n"
            "defaults\n  mode tcp\n  balance leastconn\n  option redispatch\n"
            "  timeout connect 5s\n  timeout client 600s\n  timeout server 600s\n"
            f"listen l\n  bind 127.0.0.1:{port}\n{servers}"
        )
        config.flush()
        process = subprocess.Popen(
            [program, "-q", "-db", "-f", config.name], start_new_session=True, stderr=subprocess.DEVNULL
        )
        stack.callback(process.wait, 10)
        stack.callback(process.terminate)
        await_port(port)
        yield f"127.0.0.1:{port}"
