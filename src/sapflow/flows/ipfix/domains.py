"""An observation domain of a session: its templates' keys, and its numbers, which a walk follows without their counter
while each message follows on the one before."""

from __future__ import annotations

from attrs import define, field

from sapflow.flows.ipfix.sequences import SequenceCounter

_MASK = 0xFFFFFFFF


@define(slots=True)
class Domain:
    """What is known of one observation domain, and this batch's beginning."""

    sequences: SequenceCounter = field(factory=SequenceCounter)
    expected: int | None = field(init=False)
    """The number of a message that its counter need not be told of; None: it must be told of the next in any case."""
    records: int = field(init=False)
    """In the last message, …"""
    sizes_differ: bool = field(init=False, default=False)
    """… and whether one that its counter was not told of held more or fewer than the one before."""
    export_time: int = field(init=False, default=0)
    first_sequence: int | None = field(init=False, default=None)
    keys: set[int] = field(init=False, factory=set)
    """Of its templates."""

    def __attrs_post_init__(self) -> None:
        self._go_on()

    def caught_up(self) -> SequenceCounter:
        """Its counter, told of what it was passed by."""
        if self.expected is not None:
            self.sequences.passed_by(self.expected, self.records, sizes_differ=self.sizes_differ)
            self.sizes_differ = False
        return self.sequences

    def follow(self, sequence: int, records: int, *, unknown: bool) -> tuple[int, int]:
        """A message came: how many records were lost before it, and whether it is a repeat, both by how that changed.

        Numbers count data records (RFC 7011, 3.1); after a set that cannot be read (`unknown`) the next is not known.
        """
        if sequence == self.expected and not unknown:
            self.expected = (sequence + records) & _MASK
            self.sizes_differ = self.sizes_differ or records != self.records
            self.records = records
            return 0, 0
        counter = self.caught_up()
        lost, repeats = counter.lost, counter.repeats
        counter.follow(sequence, None if unknown else records, at_least=records)
        self._go_on()
        return counter.lost - lost, counter.repeats - repeats

    def _go_on(self) -> None:
        counter = self.sequences
        self.expected = None if counter.counts_own or counter.behind else counter.expected
        self.records = counter.last_count
