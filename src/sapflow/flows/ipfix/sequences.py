"""Sequence numbers of datagrams: what was lost on the way, told apart from what is late, repeated, or a restart.

The unit is the protocol's own: NetFlow v5 counts flows, v9 packets (RFC 3954, 5.1), IPFIX data records (RFC 7011, 3.1),
sFlow datagrams. Numbers wrap at 2^32. A gap is kept (the newest few are): what comes late fills it and is lost no more;
what fills none is a repeat. The counter never steps back for either, until repeats follow on each other for so long
that the exporter must have begun anew.

A number says what was sent before its datagram. There are exporters of IPFIX (softflowd) whose numbers count what is in
the datagram as well, and leave options records out; taken literally, they lose something whenever a datagram holds more
than the one before. They are known by their steps: where two datagrams hold differently many units, the step between
their numbers is what the second holds, not the first. After two such steps in a row the numbers are read so, and what
was taken for loss in them is taken back.

Beside the loss stands what the exporter says that it sent: how far its numbers have moved, whatever came of what they
count. So `exported + repeated = units that came + unread + lost` is no identity, but holds when all of it is right.
"""

from __future__ import annotations

from attrs import define, field, frozen

_HALF = 1 << 31
_MASK = 0xFFFFFFFF
MAX_GAPS = 64
RESTART_AFTER = 8
"""Repeats in a row, each following on the one before, that are a new beginning."""
UPTIME_SLACK_MS = 60_000
STEPS_THAT_TELL = 2
"""So many steps of the other kind in a row are not chance."""


@frozen(slots=True)
class Numbers:
    """What sequence numbers say, in the protocol's units."""

    exported: int = 0
    lost: int = 0
    repeated: int = 0
    unread: int = 0
    """Exported, and either lost or in what came and could not be counted."""

    def __add__(self, other: Numbers) -> Numbers:
        """Both together."""
        return Numbers(
            self.exported + other.exported,
            self.lost + other.lost,
            self.repeated + other.repeated,
            self.unread + other.unread,
        )


@define(slots=True)
class SequenceCounter:
    """One exporter's numbers in one observation domain."""

    lost: int = 0
    late: int = 0
    repeats: int = 0
    restarts: int = 0
    counts_own: bool = False
    """Whether this exporter's numbers count what is in their datagram."""
    _expected: int | None = None
    _uptime_ms: int | None = None
    _gaps: list[tuple[int, int]] = field(factory=list)
    """(first number, how many), oldest first."""
    behind: int = 0
    """Datagrams in a row whose numbers lie behind and follow on each other: how many there are now."""
    _behind_next: int | None = None
    _exported: int = 0
    """Up to the number `_counted_to`."""
    _counted_to: int | None = None
    _repeated: int = 0
    _unread: int = 0
    _unsure: tuple[int, int] | None = None
    """Number of the last datagram when it is not known what it holds, and at least how many units it does."""
    _told: Numbers = field(factory=Numbers)
    _last: tuple[int, int] | None = None
    """Number and count of the datagram before."""
    _steps: int = 0
    _sure: tuple[int, int, int] = (0, 0, 0)
    """What was lost, and how many datagrams and units repeated, when the numbers last were certainly as others have
    them, or began."""
    _lost_if_own: int = 0
    """Since then, if they count what is in their datagram."""

    @property
    def expected(self) -> int | None:
        """The number that would come next without loss; None when it is not known."""
        return self._expected

    @property
    def last_count(self) -> int:
        """How many units the datagram before held; 0 when there was none."""
        return 0 if self._last is None else self._last[1]

    def passed_by(self, number: int, count: int, *, sizes_differ: bool) -> None:
        """Datagrams that followed on one another were not told of here: the next follows on with this number, the last
        of them held `count` units. `sizes_differ` when not all held as many, so that it is sure what numbers count."""
        if number == self._expected and not sizes_differ:
            return
        if sizes_differ:
            self._begin_learning()
        self._expected = number
        self.behind, self._behind_next = 0, None
        self._last = ((number - count) & _MASK, count)

    def take(self) -> Numbers:
        """What the numbers say since this was last asked."""
        self._settle()
        now, told = Numbers(self._exported, self.lost, self._repeated, self._unread), self._told
        self._told = now
        return Numbers(
            now.exported - told.exported,
            now.lost - told.lost,
            now.repeated - told.repeated,
            now.unread - told.unread,
        )

    def advance(self, number: int, count: int, uptime_ms: int | None = None) -> bool:
        """As `follow`, for a datagram that follows on the one before; False, with nothing changed, when it does not."""
        if number != self._expected or self.behind or self.counts_own:
            return False
        if self._last is not None and self._last[1] != count:
            self._begin_learning()
        self._last = (number, count)
        self._expected = (number + count) & _MASK
        if uptime_ms is not None:
            self._uptime_ms = uptime_ms
        return True

    def follow(
        self, number: int, count: int | None, uptime_ms: int | None = None, *, at_least: int | None = None
    ) -> None:
        """A datagram with this number came, holding `count` units (None: not known, so what comes next is not either;
        but `at_least` so many came).

        `uptime_ms` is the exporter's own, where its protocol says it: one that is much less than before, on a number
        that does not follow, is a restart.
        """
        if count is not None and self.advance(number, count, uptime_ms):
            return
        if count is not None:
            self._learn_kind(number, count)
            if self.counts_own:
                number = self._beginning(number, count)
        else:
            self._last = None
        held = count if count is not None else at_least or 0
        gap = self._gap(number)
        if gap and self._uptime_fell(uptime_ms):
            self._begin_anew(number)
        elif gap >= _HALF:
            if not self._is_anew(number, count, held):
                return
        elif count is None and self.counts_own and self._expected is not None:
            # The number is that of what comes next, whatever is in this one.
            self._unread += gap - held
            count = 0
        elif gap:
            assert self._expected is not None
            self.lost += gap
            self._settle()
            self._exported += gap
            self._counted_to = number
            self._gaps = [*self._gaps[1 - MAX_GAPS :], (self._expected, gap)]
        self._expected = None if count is None else (number + count) & _MASK
        self._unsure = (number, held) if count is None else None
        self._settle()
        self.behind, self._behind_next = 0, None
        if uptime_ms is not None:
            self._uptime_ms = uptime_ms

    def _gap(self, number: int) -> int:
        """How far a number is from the one expected; 0 where none is."""
        if self._counted_to is None:
            self._counted_to = number
        if self._unsure is None:
            return 0 if self._expected is None else (number - self._expected) & _MASK
        self._settle()
        first, held = self._unsure
        self._unsure = None
        span = (number - first) & _MASK
        if span < _HALF:
            self._unread += span - held
            self._exported += span - held
        self._counted_to = number
        return 0

    def _settle(self) -> None:
        """Count what the numbers have moved."""
        now = self._expected
        if self._unsure is not None:
            now = (self._unsure[0] + self._unsure[1]) & _MASK
        if now is None or self._counted_to is None:
            return
        moved = (now - self._counted_to) & _MASK
        self._exported += moved if moved < _HALF else moved - _MASK - 1
        self._counted_to = now

    def _count_from(self, number: int) -> None:
        """The numbers jump, and nothing was sent in between."""
        self._settle()
        self._counted_to = number
        self._unsure = None

    def _begin_learning(self) -> None:
        self._steps, self._lost_if_own = 0, 0
        self._sure = self.lost, self.repeats, self._repeated

    def _learn_kind(self, number: int, count: int) -> None:
        last, self._last = self._last, (number, count)
        if last is None or self.counts_own:
            return
        step = (number - last[0]) & _MASK
        if step != count:
            # Less than it holds are options records that its number leaves out.
            self._steps = 0
            self._lost_if_own += (step - count) & _MASK if count < step < _HALF else 0
        elif last[1] != count:
            self._steps += 1
            if self._steps == STEPS_THAT_TELL:
                self._read_anew(last[0])

    def _read_anew(self, number: int) -> None:
        """Numbers count what is in their datagram: what was taken for loss or repeats is what it is by that."""
        self.counts_own = True
        self._count_from(number)
        lost, repeats, repeated = self._sure
        lost += self._lost_if_own
        self._exported -= self.lost - lost - (self._repeated - repeated)
        self.lost, self.repeats, self._repeated = lost, repeats, repeated
        self.behind, self._behind_next = 0, None
        self._gaps.clear()
        self._expected = number

    def _beginning(self, number: int, count: int) -> int:
        """The number as others have it. Options records are in `count`, but not in such a number."""
        begin = (number - count) & _MASK
        if self._expected is not None and 0 < (number - self._expected) & _MASK < count:
            # It goes on from where the last one ended, with fewer than it holds.
            self._count_from(begin)
            self._expected = begin
        return begin

    def _uptime_fell(self, uptime_ms: int | None) -> bool:
        # Uptime wraps after 49.7 days; then it is far less than before, but by modulus it went on.
        known = self._uptime_ms
        if uptime_ms is None or known is None:
            return False
        return uptime_ms + UPTIME_SLACK_MS < known and (uptime_ms - known) & _MASK >= _HALF

    def _begin_anew(self, number: int) -> None:
        self._count_from(number)
        self.restarts += 1
        self._gaps.clear()
        self.counts_own = False
        self._begin_learning()

    def _is_anew(self, number: int, count: int | None, held: int) -> bool:
        """A number from before: fills a gap, or repeats; True when it is neither but a new beginning."""
        for index, (first, size) in enumerate(self._gaps):
            inside = (number - first) & _MASK
            if inside < size and count is not None and inside + count <= size:
                self.late += 1
                self.lost -= count
                rest = [(first, inside), ((number + count) & _MASK, size - inside - count)]
                self._gaps[index : index + 1] = [part for part in rest if part[1]]
                return False
        self.behind = self.behind + 1 if number == self._behind_next else 1
        self._behind_next = None if count is None else (number + count) & _MASK
        if self.behind < RESTART_AFTER:
            self.repeats += 1
            self._repeated += held
            return False
        self._begin_anew(number)
        return True
