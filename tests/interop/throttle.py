"""A slow way to a server: a TCP door in front of it that carries so many bytes per second, each some time later."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

from attrs import define, field

CHUNK = 4096
DIAL_S = 5.0


@define
class Throttle:
    """`bytes_per_s` is of each connection and direction; it and `delay_s` may be changed while it carries."""

    port: int
    upstream: int
    bytes_per_s: float = float("inf")
    delay_s: float = 0.0
    _listener: socket.socket = field(init=False)

    @contextmanager
    def serving(self) -> Iterator[Throttle]:
        """Carry connections, in threads of its own, which end with them."""
        with closing(socket.create_server(("127.0.0.1", self.port))) as self._listener:
            threading.Thread(target=self._accept, daemon=True).start()
            try:
                yield self
            finally:
                # Wakes the thread that waits in accept, as closing alone does not.
                self._listener.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with ExitStack() as stack, suppress(OSError):
            stack.enter_context(client)
            server = stack.enter_context(socket.create_connection(("127.0.0.1", self.upstream), DIAL_S))
            server.settimeout(None)
            back = threading.Thread(target=self._one_way, args=(server, client), daemon=True)
            back.start()
            self._one_way(client, server)
            back.join()

    def _one_way(self, source: socket.socket, to: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK):
                time.sleep(self.delay_s + len(data) / self.bytes_per_s)
                to.sendall(data)
        for end in (source, to):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
