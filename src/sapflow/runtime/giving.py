"""Accepted sockets given to other processes of this host. `handoff` has the rules.

What cannot be given, for whatever reason, is still the caller's, who relays it: `give` says which, within its deadline,
and when it says so no other answer can come any more.
"""

from __future__ import annotations

import array
import errno
import math
import socket
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog
import trio
from attrs import define, field, frozen

from sapflow.runtime.each import TaskEach
from sapflow.runtime.handoff import TAKEN, Handed, is_mine, path_here, short_path
from sapflow.runtime.pauses import Pauses
from sapflow.runtime.seldom import Seldom

log = structlog.get_logger()

MAX_WAITING = 64
"""Sockets given to one taker that it has not answered yet; more wait for their turn."""
TURN_S = 0.5
"""So long whoever accepts for all waits until fewer are on their way: a taker may be busy with a herd."""
BACKOFF_FIRST_S = 0.1
BACKOFF_MOST_S = 2.0
STEADY_S = 5.0
GONE, SLOW, UNASKED = "closed by the taker", "a socket was not taken in time", "the taker answered what nobody asked"
_BUSY = {errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS, errno.ENOMEM}


@define
class GivingCounts:
    """What became of sockets that were offered; never goes down."""

    given: int = 0
    refused: int = 0
    """The taker had no room."""
    unanswered: int = 0
    """It was busy, or gone."""


Settled = Callable[[bool], None]
"""Called once with what became of a socket that is on its way: whether it is the taker's now."""


@frozen
class _Offer:
    until: float
    """When no answer is waited for any longer."""
    settled: Callable[[bytes], None]


@define(eq=False)
class _Channel:
    """A connection to one taker. Its answers come in the order of the offers, so that the first is the one overdue."""

    sock: socket.socket
    ended: bool = False
    why: str = ""
    """… it did."""
    turns: trio.Semaphore = field(factory=lambda: trio.Semaphore(MAX_WAITING))
    """One for each socket that may be on its way: who offers has one, and the answer gives it back."""
    _waiting: deque[_Offer] = field(factory=deque)
    _in_time: trio.CancelScope = field(factory=trio.CancelScope)

    def offer(self, descriptor: int, handed: Handed, until: float, settled: Callable[[bytes], None]) -> bool:
        """Send a socket: False when that is not possible now. `settled` hears the answer, none if there is none."""
        if self.ended:
            return False
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        try:
            self.sock.sendmsg([handed.encode()], passed, socket.MSG_NOSIGNAL)
        except OSError as error:
            if error.errno not in _BUSY:
                self.end(error.strerror or GONE)
            return False
        if not self._waiting:
            self._in_time.deadline = until
        self._waiting.append(_Offer(until, settled))
        return True

    async def read(self) -> None:
        """Answers, until the taker is gone or one was waited for in vain."""
        while not self.ended:
            with trio.CancelScope(deadline=self._waiting[0].until if self._waiting else math.inf) as self._in_time:
                await trio.lowlevel.wait_readable(self.sock)
            # All that are there: a pass of the scheduler for each would be felt in a herd.
            while self._read_some():
                continue
            if self._in_time.cancelled_caught and self._waiting and self._waiting[0].until <= trio.current_time():
                self.end(SLOW)

    def end(self, why: str) -> None:
        """No answer comes any more: those that came are read, and the other sockets are still the giver's."""
        if self.ended:
            return
        self.ended, self.why = True, why
        try:
            self.sock.shutdown(socket.SHUT_RD)
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
        while self._read_some():
            continue
        while self._waiting:
            self._settle(b"")

    def _settle(self, answer: bytes) -> None:
        self.turns.release()
        self._waiting.popleft().settled(answer)

    def _read_some(self) -> bool:
        """One answer; False when there is none now. It ends when there will be no more."""
        try:
            answer = self.sock.recv(16)
        except BlockingIOError:
            return False
        except OSError:
            answer = b""
        if not answer or not self._waiting:
            self.end(GONE if not answer else UNASKED)
            return False
        self._settle(answer)
        return True


async def _has_turn(turns: trio.Semaphore, within_s: float) -> bool:
    try:
        turns.acquire_nowait()
    except trio.WouldBlock:
        with trio.move_on_after(within_s) as waited:
            await turns.acquire()
        return not waited.cancelled_caught
    return True


class Giving:
    """Connections to all takers of this host; `run()` is its task tree."""

    def __init__(self, timeout_s: float) -> None:
        self.counts = GivingCounts()
        self._timeout_s = timeout_s
        self._channels: dict[str, _Channel] = {}
        self._lost = Seldom()
        self._tasks = TaskEach(self._keep)

    def takers(self, announced: Mapping[str, str]) -> None:
        """Those that there are now, by name, as `handoff.announced` tells of them: those on this host are used."""
        here = {name: path_here(told) for name, told in announced.items()}
        self._tasks.of({name: str(path) for name, path in here.items() if path is not None})

    def reaches(self, taker: str) -> bool:
        """Whether a connection to it is up, so that a socket may be given."""
        channel = self._channels.get(taker)
        return channel is not None and not channel.ended

    async def offer(
        self, taker: str, descriptor: int, handed: Handed, settled: Settled, *, turn_s: float = TURN_S
    ) -> bool:
        """Send a socket from which nothing was read, once not too many are on their way: False if it was not sent.

        `settled` is called within the timeout, and not from in here. If it is the taker's then, it is for the caller to
        close its own descriptor, without a word to the other end. Who is cancelled in here has sent nothing.
        """
        channel = self._channels.get(taker)
        if channel is None or channel.ended:
            return False
        if not await _has_turn(channel.turns, turn_s):
            self.counts.unanswered += 1
            return False

        def counted(answer: bytes) -> None:
            if answer == TAKEN:
                self.counts.given += 1
            elif answer:
                self.counts.refused += 1
            else:
                self.counts.unanswered += 1
            settled(answer == TAKEN)

        if channel.offer(descriptor, handed, trio.current_time() + self._timeout_s, counted):
            return True
        channel.turns.release()
        self.counts.unanswered += 1
        return False

    async def give(self, taker: str, stream: trio.SocketStream, handed: Handed) -> bool:
        """As `offer`, until it is known whose the socket is: whether it is the taker's."""
        known, taken = trio.Event(), False

        def settled(is_taken: bool) -> None:
            nonlocal taken
            taken = is_taken
            known.set()

        if await self.offer(taker, stream.socket.fileno(), handed, settled, turn_s=self._timeout_s):
            # Whoever is cancelled in between would not know whose the socket is; the channel's own deadline holds.
            with trio.CancelScope(shield=True):
                await known.wait()
        return taken

    async def run(self) -> None:
        """Hold a connection to each taker until cancelled."""
        await self._tasks.run()

    async def _keep(self, name: str, path: str) -> None:
        pauses = Pauses(BACKOFF_FIRST_S, BACKOFF_MOST_S, STEADY_S)
        while True:
            began = trio.current_time()
            try:
                reason = await self._once(name, path)
            except OSError as error:
                reason = error.strerror or str(error)
            lasted_s = trio.current_time() - began
            if lasted_s >= STEADY_S:
                self._lost.over(name)
            if times := self._lost.again(name):
                log.info(
                    "hand-off not possible now",
                    taker=name,
                    reason=reason,
                    times=times,
                    meaning="connections are relayed to it",
                )
            await trio.sleep(pauses.after(lasted_s))

    async def _once(self, name: str, path: str) -> str:
        """A connection to a taker, until it ends: why it did."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as sock:
            with short_path(Path(path)) as short:
                # It is there or not, at once: a Unix socket whose queue is full says so.
                sock.connect(short)
            if not is_mine(sock):
                raise OSError(errno.EPERM, f"{path} is another user's")
            channel = self._channels[name] = _Channel(sock)
            try:
                await channel.read()
            finally:
                channel.end(GONE)
                if self._channels.get(name) is channel:
                    del self._channels[name]
        return channel.why
