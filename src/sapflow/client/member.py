"""Reading for a consumer group: from where the group has come to, over any number of connections, with commits.

Of a group's members one reads at a time, and the others stand by to take over. A batch counts as dealt with when it
was committed; whoever reads for the group next begins behind that. What this program was given already it is not given
again, across reconnects and restarts of Phloem, and across its own restarts as far as its last commit went.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial

import anyio

from sapflow.client.marks import Marks
from sapflow.client.missing import Ahead, Corrupt, Missing, RecordsMissing
from sapflow.client.subscription import Answer, ConsumedBatch, Joined, OptionsData, Subscription, open_subscription
from sapflow.errors import Fenced, Refused, Unreachable
from sapflow.link import Close

log = logging.getLogger("sapflow.client")

BACKOFF_FIRST_S = 0.1
BACKOFF_MOST_S = 5.0
COMMIT_INTERVAL_S = 1.0
"""A commit that goes by itself waits for the answer to the one before, but no longer than this."""

_COME_BACK = (Close.GOING_AWAY, Close.TIMEOUT, Close.OVERLOADED)

Open = Callable[[Marks], AbstractAsyncContextManager[Subscription]]


class Member:
    """Iterate over it: each batch is dealt with when the next is asked for, and then committed by itself.

    With `auto_commit=False` nothing is committed but by `commit()`. `state` is what the program kept with the group's
    last commit, `position` that of the last batch given; both are known once `turn()` is over, or a batch was given.
    `options` is what exporters had told before the batches that come next: to be learned from, and let go.
    """

    def __init__(
        self, open_: Open, org: str, group: str, *, auto_commit: bool, on_missing: Callable[[Missing], None] | None
    ) -> None:
        self.org = org
        self.group = group
        self.position = 0
        self.committed = 0
        self._done = 0
        """What the program has dealt with, when it does not say so itself."""
        self.options: list[OptionsData] = []
        self.state = b""
        self.repeats = 0
        """Entries that were dropped since they had been given before."""
        self._open = open_
        self._auto = auto_commit
        self._on_missing = on_missing
        self._marks = Marks()
        self._stack = AsyncExitStack()
        self._link: Subscription | None = None
        self._joined: Joined | None = None
        self._failures = 0
        self._number = 0
        self._asked: dict[int, int] = {}
        """Commits that were asked for and not answered: number, position."""
        self._asked_at = 0.0
        self._quarantined = 0
        self._fenced = False
        self._pending: list[Missing] = []

    # --- reading ----------------------------------------------------------------------------------------------

    def __aiter__(self) -> Member:
        return self

    async def __anext__(self) -> ConsumedBatch:
        """The next batch. When it is cancelled nothing is lost: the next call goes on.

        Raises RecordsMissing, once, for what is not there to be given; Refused for a credential taken away; and, when
        it is the program that commits, Fenced when what it has not committed is to be given again.
        """
        self._done = self.position
        while True:
            link = await self._turn()
            self._tell()
            try:
                if self._auto:
                    await self._commit_by_itself(link)
                else:
                    self._check_fence()
                item = await link.next()
            except Unreachable as error:
                await self._lost(error)
                continue
            except Refused as error:
                await self._refused(error)
                continue
            self.options += link.take_options()
            if item is None:
                raise StopAsyncIteration
            if isinstance(item, Answer):
                await self._answered(item)
            elif link.position <= self.position:
                # Of before a reconnect: it was given, or told.
                self.repeats += isinstance(item, ConsumedBatch)
            elif isinstance(item, ConsumedBatch):
                self.position = item.position
                return item
            else:
                self._done = self.position = link.position
                self._quarantined += isinstance(item, Corrupt)
                self._pending.append(item)

    async def turn(self) -> None:
        """Wait until it is this member that reads for the group, and connected.

        Whoever puts a deadline around the next batch waits here first: it would cut off each new connection as well.
        """
        await self._turn()

    def take_options(self) -> list[OptionsData]:
        """What exporters had told, those that told last at the end; what was taken is let go."""
        taken, self.options = self.options, []
        return taken

    def quarantine(self, batch: ConsumedBatch, reason: str) -> None:
        """Say that a batch cannot be used: told as damaged ones are, and counted with the group's next commit."""
        self._quarantined += 1
        self._pending.append(Corrupt(batch.position, reason))
        self._tell()

    def _tell(self) -> None:
        while self._pending:
            what = self._pending.pop(0)
            if self._on_missing is not None:
                self._on_missing(what)
            elif isinstance(what, Corrupt):
                log.warning("org %s, group %s: %s", self.org, self.group, what)
            else:
                raise RecordsMissing(what, self.org, self.group)

    # --- committing -------------------------------------------------------------------------------------------

    async def commit(self, state: bytes | None = None) -> None:
        """Say that all up to the last batch given is dealt with: durable when this returns.

        `state` is kept with it, in one, and given to whoever reads for the group next; None: as it was. Raises Fenced
        when the group is another member's by now or was reset, and ValueError for a state that is too long.
        """
        while True:
            link = await self._turn()
            self._check_fence()
            own = self.state if state is None else state
            try:
                number = await self._ask(link, self.position, own)
                answer = await link.answer_to(number)
            except Unreachable as error:
                await self._lost(error)
                continue
            except Refused as error:
                await self._refused(error)
                continue
            await self._answered(answer)
            if not answer.why:
                self.state = own
                return

    def _check_fence(self) -> None:
        if self._fenced:
            self._fenced = False
            raise Fenced(
                f"group {self.group} of org {self.org} was taken over by another member, or reset: what was read since "
                f"position {self.committed} is not committed, and is given again to whoever reads for it now"
            )

    async def _commit_by_itself(self, link: Subscription) -> None:
        if self._fenced:
            self._fenced = False
            log.warning("org %s, group %s: reset; what was read last is given again", self.org, self.group)
        newest = max(self._asked.values(), default=self.committed)
        waits = bool(self._asked) and time.monotonic() - self._asked_at < COMMIT_INTERVAL_S
        if self._done > newest and not waits:
            await self._ask(link, self._done, self.state)

    async def _ask(self, link: Subscription, position: int, own: bytes) -> int:
        assert self._joined is not None
        packed = self._marks.pack(own, self._joined.state_bytes)
        self._number += 1
        self._asked[self._number], self._asked_at = position, time.monotonic()
        await link.ask_commit(self._number, position, packed, self._quarantined)
        self._quarantined = 0
        return self._number

    async def _answered(self, answer: Answer) -> None:
        """What became of a commit, and of all that were asked for before it."""
        self._asked = {number: position for number, position in self._asked.items() if number > answer.number}
        match answer.why:
            case "":
                self.committed = answer.position
            case "fenced":
                # Joining again shows what became of the group.
                await self._lost(Unreachable(f"the commit was refused: {answer.reason}"))
            case "storage":
                await self._lost(Unreachable(f"the group's position cannot be written: {answer.reason}"))
            case "state":
                raise Refused(f"the commit was refused: {answer.reason}")

    # --- connections ------------------------------------------------------------------------------------------

    async def join(self) -> None:
        """Become a member, first or behind others. Raises Refused, Unreachable, LinkError."""
        self._link = await self._stack.enter_async_context(self._open(self._marks))

    async def _turn(self) -> Subscription:
        """The connection on which it is our turn, made anew if the last one went away."""
        while True:
            try:
                if self._link is None:
                    await self.join()
                assert self._link is not None
                link = self._link
                if link.joined is None or link.joined is not self._joined:
                    self._begin(await link.turn())
                    if link.ahead:
                        self._pending.append(Ahead(link.ahead, link.position))
                    self._failures = 0
                return link
            except Unreachable as error:
                await self._lost(error)
            except Refused as error:
                await self._refused(error)

    def _begin(self, joined: Joined) -> None:
        """It is our turn: what became of the group meanwhile, and what that means for what we did."""
        before, self._joined = self._joined, joined
        self.options = []  # all that was told is given again
        uncommitted = self.position > self.committed
        if before is None:
            self.position = joined.position
        elif self._is_void(before, joined, uncommitted):
            # What the program has of it is to be dropped, and given again.
            self._fenced = uncommitted
            self._marks.clear()
            self._done = self.position = joined.position
        elif joined.position < self.committed:
            # The log has lost its end, and is read again from its first entry; what was given is known by its marks.
            self._done = self.position = joined.position
        else:
            self.position = max(self.position, joined.position)
        self.committed = joined.position
        self.state = self._marks.unpack(joined.state)
        self._asked.clear()

    def _is_void(self, before: Joined, joined: Joined, uncommitted: bool) -> bool:
        """Whether what was given since the last commit does not count."""
        if joined.resets != before.resets or joined.generation <= before.generation:
            return True  # it was reset, or removed and made anew
        # Our own last commit may have come through without its answer. What others did in between makes no difference
        # to a program whose batches are dealt with one by one; one that gathers them must drop what it has gathered.
        others = joined.position not in (self.committed, *self._asked.values())
        return uncommitted and others and not self._auto

    async def _lost(self, error: Unreachable) -> None:
        """The connection is gone: another is made after a while, the longer the more have failed."""
        await self._leave()
        if not self._failures:
            log.info("org %s, group %s: %s; trying again", self.org, self.group, error)
        most = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2**self._failures)
        self._failures = min(self._failures + 1, 10)
        await anyio.sleep(random.uniform(0, most))

    async def _refused(self, error: Refused) -> None:
        await self._leave()
        if error.code not in _COME_BACK:
            raise error
        await self._lost(Unreachable(str(error)))

    async def _leave(self) -> None:
        if self._link is not None:
            self.repeats += self._link.repeats
            self._link = None
        await self._stack.aclose()

    async def finish(self) -> None:
        """Commit what was given, when that goes by itself. Raises Unreachable when it is not done in good time."""
        if not self._auto or self._joined is None or self.position <= self.committed:
            return
        try:
            with anyio.fail_after(BACKOFF_MOST_S):
                await self.commit()
        except TimeoutError:
            raise Unreachable(
                f"position {self.position} of group {self.group} was not committed; what was read since position "
                f"{self.committed} is given again"
            ) from None
        except Fenced as error:
            log.warning("%s", error)

    async def close(self) -> None:
        """Leave the group; whoever stands by takes over."""
        await self._leave()


@asynccontextmanager
async def consume(
    url: str,
    org: str,
    token: str,
    *,
    group: str,
    at: str | int | dict[str, int] = "earliest",
    follow: bool = True,
    auto_commit: bool = True,
    on_missing: Callable[[Missing], None] | None = None,
    connect_timeout_s: float = 5.0,
) -> AsyncIterator[Member]:
    """An org's batches for a consumer group, from where the group has come to; one that is new begins `at`.

    Of the members of a group one reads at a time; the others wait for it to leave or die. A door that goes away is
    waited for. What is missing (`Gap`, `Corrupt`, `Ahead`) is given to `on_missing`; without it a gap and a position
    beyond the log's end are raised as RecordsMissing, a damaged entry is a warning in the log `sapflow.client`.

    With `auto_commit` each batch is committed after the next was asked for, and the last one at the end of the context,
    unless that ends with an exception: then it is given again. Raises Unreachable when the door cannot be reached at
    first, Refused for a credential, an org or a name that is not accepted.
    """
    wanted = {"at": at, "follow": follow, "group": group}
    open_ = partial(open_subscription, url, org, token, wanted, connect_timeout_s=connect_timeout_s)
    async with joined(open_, org, group, auto_commit=auto_commit, on_missing=on_missing) as member:
        yield member


@asynccontextmanager
async def joined(
    open_: Open, org: str, group: str, *, auto_commit: bool, on_missing: Callable[[Missing], None] | None
) -> AsyncIterator[Member]:
    """As `consume`, over connections that `open_` makes."""
    member = Member(open_, org, group, auto_commit=auto_commit, on_missing=on_missing)
    try:
        await member.join()
        yield member
        await member.finish()
    finally:
        await member.close()
