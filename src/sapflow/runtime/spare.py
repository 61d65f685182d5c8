"""A process that has loaded everything, and waits to become the one that is needed next.

Loading modules is most of the time from a process's death to its successor's first answer. A spare has done it before.
It is a child of the supervisor like the others, with the standard input and output of one, so all that it has yet to be
given is its order: the arguments, and the listening sockets. The order goes over a pair of Unix sockets
(SOCK_SEQPACKET) in one message, the descriptors in it (SCM_RIGHTS); the spare answers it with one byte.

Rule 1: who has answered is the process that was ordered. A spare that does not answer in time is killed before another
        process is started in its place, so that there are never two.
Rule 2: none is loaded while a process is being started, nor right after: that is when the processor is needed.
Rule 3: a spare that is not there, or is no good, costs time and nothing else. Its end is nobody's fault.
Rule 4: it ends when its socket does, as that does with the supervisor, however that ends.
"""

from __future__ import annotations

import json
import select
import signal
import socket
import subprocess
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import structlog
import trio
from attrs import define, field, frozen

log = structlog.get_logger()

LOADED = b"="
OBEYED = b"+"
MAX_ORDER_BYTES = 64 << 10
MAX_SOCKETS = 64
PAUSE_S = 1.0
"""No process was started for so long before a spare is loaded; twice as long after each spare that did not last."""
PAUSE_MOST_S = 60.0
STEADY_S = 60.0
ANSWER_S = 1.0
"""One that has loaded answers within milliseconds. One that is stopped or swapped out is not waited for."""
LOADING_ANSWER_S = 10.0
"""One that still loads answers when the module that it is at is there: not later than one that begins only now."""
# From its first instruction on: Ctrl-C in a terminal is for the supervisor, and Python would print where it was.
_UNINTERRUPTED = ("/bin/sh", "-c", "trap '' INT; exec \"$@\"", "sh")


@frozen
class Order:
    """What a spare is to become: a command's arguments, and listening sockets by what they are for."""

    arguments: Sequence[str]
    sockets: Mapping[str, int] = field(factory=dict)


@define(eq=False)
class _Idle:
    """A spare that was started and not ordered."""

    process: trio.Process
    orders: trio.socket.SocketType
    waiting: trio.CancelScope = field(factory=trio.CancelScope)
    is_loaded: bool = False
    is_taken: bool = False


class Spare:
    """One spare at a time, that `command` starts with its socket's number as last argument. `run()` is its task."""

    def __init__(self, command: Sequence[str], *, pause_s: float = PAUSE_S, answer_s: float = ANSWER_S) -> None:
        self._command = command
        self._pause_s = pause_s
        self._answer_s = answer_s
        self._idle: _Idle | None = None
        self._starting = 0
        self._starts = 0
        """Of other processes, begun and ended."""

    @property
    def pid(self) -> int:
        """Of the one that has loaded and waits; 0 when there is none."""
        return self._idle.process.pid if self._idle is not None and self._idle.is_loaded else 0

    async def run(self) -> None:
        """Keep one until cancelled."""
        failures = 0
        while True:
            await self._until_quiet(min(self._pause_s * 2 ** min(failures, 10), PAUSE_MOST_S))
            began = trio.current_time()
            is_used = await self._keep_one()
            failures = 0 if is_used or trio.current_time() - began > STEADY_S else failures + 1

    @contextmanager
    def aside(self) -> Iterator[None]:
        """While a process is started: no spare is loaded meanwhile."""
        self._starting += 1
        self._starts += 1
        try:
            yield
        finally:
            self._starting -= 1
            self._starts += 1

    async def take(self, order: Order) -> trio.Process | None:
        """The spare, that now is what it was ordered to be; None when there is none, or it did not answer."""
        idle, self._idle = self._idle, None
        if idle is None:
            return None
        idle.is_taken = True
        idle.waiting.cancel()
        obeys = False
        try:
            with trio.move_on_after(self._answer_s if idle.is_loaded else LOADING_ANSWER_S):
                obeys = await _obeys(idle.orders, order)
        finally:
            idle.orders.close()
            if not obeys:
                await _end(idle.process)
        if obeys:
            return idle.process
        log.warning("spare not used", pid=idle.process.pid, reason="it did not answer its order", to=order.arguments[0])
        return None

    async def _until_quiet(self, pause_s: float) -> None:
        while True:
            starts = self._starts
            await trio.sleep(pause_s)
            if not self._starting and starts == self._starts:
                return

    async def _keep_one(self) -> bool:
        """Start one, until it is taken or has ended: whether it was taken."""
        try:
            idle = self._idle = await _start(self._command)
        except OSError as error:
            log.warning("spare not started", reason=error.strerror)
            return False
        try:
            with idle.waiting:
                await _until_it_ends(idle)
        finally:
            if not idle.is_taken:
                self._idle = None
                idle.orders.close()
                await _end(idle.process)
        if not idle.is_taken:
            log.info("spare ended", pid=idle.process.pid, code=idle.process.returncode)
        return idle.is_taken


async def _start(command: Sequence[str]) -> _Idle:
    """Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            process = await trio.lowlevel.open_process(
                [*_UNINTERRUPTED, *command, str(theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
            )
        except BaseException:
            ours.close()
            raise
    return _Idle(process, trio.socket.from_stdlib_socket(ours))


async def _until_it_ends(idle: _Idle) -> None:
    try:
        while await idle.orders.recv(len(LOADED)):
            idle.is_loaded = True
    except OSError:
        # It ended with an order unread.
        return


async def _obeys(orders: trio.socket.SocketType, order: Order) -> bool:
    told = json.dumps({"arguments": list(order.arguments), "sockets": list(order.sockets)}).encode()
    assert len(told) <= MAX_ORDER_BYTES
    assert len(order.sockets) <= MAX_SOCKETS
    numbers = array("i", order.sockets.values())
    try:
        await orders.sendmsg([told], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)] if numbers else [])
        while said := await orders.recv(len(OBEYED)):
            if said == OBEYED:
                return True
    except OSError:
        # It has ended.
        return False
    return False


async def _end(process: trio.Process) -> None:
    """At once: it has nothing to lose."""
    with trio.CancelScope(shield=True):
        process.kill()
        await process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                await pipe.aclose()


# The spare's own side: plain sockets, since whatever it becomes runs a Trio of its own.


def is_ordered(orders: socket.socket) -> bool:
    """Whether an order is there, or nobody to give one."""
    poll = select.poll()
    poll.register(orders, select.POLLIN)
    return bool(poll.poll(0))


def await_order(orders: socket.socket) -> Order | None:
    """Wait for the order, answer it, and close the socket; None when nobody is left to give one.

    The order's sockets are numbers of this process's now. Ctrl-C is heard again.
    """
    with orders:
        try:
            orders.send(LOADED)
            told, numbers = _received(orders)
            if not told:
                return None
            # Before the answer: who has answered is told to end with it.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            orders.send(OBEYED)
        except (BrokenPipeError, ConnectionResetError):
            return None
    found = json.loads(told)
    return Order(found["arguments"], dict(zip(found["sockets"], numbers, strict=True)))


def _received(orders: socket.socket) -> tuple[bytes, array[int]]:
    numbers = array("i")
    # `socket.recv_fds` of Python 3.11 takes flags and does not heed them.
    room = socket.CMSG_LEN(MAX_SOCKETS * numbers.itemsize)
    told, passed, flags, _ = orders.recvmsg(MAX_ORDER_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    assert not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
    for _, _, data in passed:
        numbers.frombytes(data)
    return told, numbers
