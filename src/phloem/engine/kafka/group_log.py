"""The groups' topic: changes of consumer groups into it, and all of it applied, in order.

Synchronous; `change` and `refresh` belong to one thread, which waits for Kafka without holding up the log's own. What
was applied may be looked at in any thread. Writing asks nobody whether it may: what became of a change is known when it
is read back. One that was not acknowledged in time may still be applied, and is then as if it had been made just now.
"""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence, Set

import structlog
from attrs import define

from phloem.engine.groups import Commit, Declined, Group, Remove, SharedChange, Take
from phloem.engine.kafka.clients import Clients, Trouble
from phloem.engine.kafka.group_records import Loading, Part, decode, encode, snapshot
from phloem.engine.kafka.group_state import GroupState, Outcome, Proposal, Standing
from phloem.engine.kafka.names import Place, groups_topic_of
from phloem.engine.kafka.producing import UNKNOWN, Draft, Producing
from phloem.engine.kafka.reading import ReadCounts, Reader
from phloem.engine.kafka.settings import KafkaSettings
from phloem.engine.kafka.topics import Topics
from phloem.engine.layout import Tail
from sapflow.errors import StorageError

log = structlog.get_logger()

KEY = b"group"
LEASE_S = 6.0
"""A node that writes nothing for so long, while Kafka is reached, may be taken from; see `turns.BEAT_S`."""
SNAPSHOT_BYTES = 4 << 20
"""A snapshot is written when so much was written since the last, and four times what it would hold."""
READ_BYTES = 1 << 20


@define
class GroupLogCounts:
    """What was done with the groups' topic; never goes down."""

    proposals: int = 0
    applied: int = 0
    snapshots: int = 0
    loads: int = 0
    damaged: int = 0
    """Records that were not what was written, or not ours."""


class GroupLog:
    """All consumer groups of the fleet, as one node knows them."""

    def __init__(
        self,
        settings: KafkaSettings,
        clients: Clients,
        trouble: Trouble,
        topics: Topics,
        tails: Callable[[Set[str]], Mapping[str, Tail]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts = GroupLogCounts()
        self.node = f"{settings.node}/{uuid.uuid4().hex[:12]}"
        self._place = Place(groups_topic_of(settings.fleet), 0)
        self._settings = settings
        self._topics = topics
        self._tails = tails
        """Where orgs' logs begin and end."""
        self._producing = Producing(settings, clients, trouble)
        self._make_reader: Callable[[], Reader] = lambda: Reader(
            clients.make_consumer(settings.consumer(), trouble.note), settings, trouble, ReadCounts()
        )
        self._clock = clock
        self._reader: Reader | None = None
        self._state: GroupState | None = None
        self._lock = threading.Lock()
        """Held while the state changes, and by who looks at it in another thread."""
        self._numbers = itertools.count(1)
        self._awaited: dict[int, Outcome] = {}
        """What became of this node's proposals of the call that is under way."""
        self._heard: dict[str, tuple[int, float]] = {}
        """Each node's last sign of life, and when it was first seen here."""
        self._since_snapshot = 0

    # --- looking ----------------------------------------------------------------------------------------------

    def of(self, org: str) -> dict[str, Group]:
        """An org's groups. Raises StorageError when they were never read."""
        with self._lock:
            return {name: standing.group for name, standing in self._known().of(org).items()}

    def orgs(self) -> list[str]:
        """Those that have groups. Raises StorageError when they were never read."""
        with self._lock:
            return self._known().orgs()

    def standing(self, org: str, name: str) -> Standing | None:
        """A group and its reader. Raises StorageError when they were never read."""
        with self._lock:
            return self._known().get(org, name)

    def generation(self, org: str, name: str) -> int | None:
        """See `SharedGroups`."""
        standing = self.standing(org, name)
        return standing.group.generation if standing is not None else None

    def reader(self, org: str, name: str) -> str:
        """See `SharedGroups`."""
        standing = self.standing(org, name)
        return _name(standing.node) if standing is not None and standing.node != self.node else ""

    def is_free(self, org: str, name: str) -> bool:
        """Whether a member of this node may try to take a group: nobody else reads, or has given a sign of life."""
        standing = self.standing(org, name)
        if standing is None or not standing.node or _name(standing.node) == _name(self.node):
            return True
        return self._is_silent(standing.node)

    def mine(self) -> dict[int, tuple[str, str]]:
        """The seats of this node that read, and for which org's group."""
        with self._lock:
            found = self._known().all()
            return {one.seat: (org, name) for org, name, one in found if one.node == self.node}

    def _known(self) -> GroupState:
        if self._state is None:
            raise StorageError("consumer groups were not read from Kafka yet; it is tried again")
        return self._state

    def _is_silent(self, node: str) -> bool:
        heard = self._heard.get(node)
        return heard is not None and self._clock() - heard[1] >= LEASE_S

    # --- changing ---------------------------------------------------------------------------------------------

    def change(self, changes: Sequence[SharedChange], now_us: int) -> list[Outcome]:
        """Write changes, in order, and wait for what becomes of them.

        Raises StorageError: then it is not known what became of them.
        """
        self._topics.prepare_groups()
        if self._state is None or any(isinstance(change, Take | Remove) for change in changes):
            self.refresh()  # for who reads, and whether they are still there
        found = self._tails({change.org for change in changes if isinstance(change, Take | Commit)})
        proposals = [self._proposal(change, now_us, found) for change in changes]
        self.counts.proposals += len(proposals)
        self._awaited.clear()
        end = self._store([encode(proposal) for proposal in proposals])
        self._catch_up(end)
        outcomes = [self._awaited.get(proposal.number, _UNKNOWN) for proposal in proposals]
        if any(outcome is _UNKNOWN for outcome in outcomes):
            raise StorageError(
                f"what was written to {self._place.topic} was not read back; it was cut, or is another one"
            )
        if self._since_snapshot > max(SNAPSHOT_BYTES, 4 * self._known().state_bytes):
            try:
                self._write_snapshot()
            except StorageError as error:
                # What was asked for is done; the topic is longer than it need be until the next time.
                log.warning("groups not written anew", reason=str(error))
        return outcomes

    def _proposal(self, change: SharedChange, now_us: int, tails: Mapping[str, Tail]) -> Proposal:
        heard, tail = 0, Tail()
        if isinstance(change, Take | Commit):
            tail = tails[change.org]
        if isinstance(change, Take | Remove):
            standing = self.standing(change.org, change.name)
            if standing is not None and self._is_silent(standing.node):
                heard = self._heard[standing.node][0]
        return Proposal(self.node, next(self._numbers), change, now_us, tail.first, tail.next, heard)

    def _store(self, records: Sequence[bytes]) -> int:
        """Write records: the position of the last; 0 when Kafka does not say."""
        offsets = [UNKNOWN] * len(records)
        drafts = [Draft(self._place, KEY, record, []) for record in records]
        self._producing.store(drafts, offsets.__setitem__)
        return max(offsets) + 1

    def _write_snapshot(self) -> None:
        """Of what stands now; and have Kafka forget what came before. Raises StorageError."""
        state = self._known()
        through, self._since_snapshot = state.through, 0
        for part in snapshot(state, uuid.uuid4().hex):
            self._store([encode(part)])
        self._topics.forget_before(self._place, through)
        self.counts.snapshots += 1
        log.info("groups written anew", groups=sum(1 for _ in state.all()), state_bytes=state.state_bytes)

    # --- reading ----------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Apply what there is by now. Raises StorageError."""
        try:
            self._catch_up()
        except StorageError:
            # Nobody can be silent while nobody is heard.
            self._heard.clear()
            raise
        now = self._clock()
        with self._lock:
            signs = dict(self._known().signs)
        before, self._heard = self._heard, {}
        for node, sign in signs.items():
            heard = before.get(node)
            self._heard[node] = heard if heard is not None and heard[0] == sign.position else (sign.position, now)

    def _catch_up(self, end: int = 0) -> None:
        """Apply what there is: up to a position, if that is known, else as far as Kafka says that it goes."""
        try:
            if self._reader is None:
                self._reader = self._make_reader()
                self._check(*self._reader.ends(self._place))
            while self._state is None or not self._read(self._reader, self._state, end):
                self._load(self._reader)
        except BaseException:
            self._let_go()
            raise

    def _check(self, low: int, end: int) -> None:
        """Whether a topic that was read before goes on where it was left."""
        if self._state is not None and not low <= self._state.through <= end:
            log.warning("groups are read anew", topic=self._place.topic, reason="it was cut, or is another one")
            self._state = None

    def _load(self, reader: Reader) -> None:
        self.counts.loads += 1
        low, end = reader.ends(self._place)
        loading = Loading(low)
        after: int | None = low
        while loading.state is None and after is not None and after < end:
            after = self._step(reader, after, lambda position, data: self._take(loading, position, data))
        if after is None:
            return  # another node has just had Kafka forget it: there is a snapshot
        if loading.state is None:
            raise StorageError(
                f"topic {self._place.topic} begins at position {low + 1:,} and says nowhere what came before: it was "
                "cut, or something else keeps it short. Groups are not served; delete it to begin with none"
            )
        with self._lock:
            self._state = loading.state

    def _read(self, reader: Reader, state: GroupState, end: int) -> bool:
        """Apply all that there is behind a state; False when some of it is gone, and it is to be loaded anew."""
        if not state.through and reader.ends(self._place)[0]:
            self._state = None
            return False
        reader.expect(end)
        while True:
            before = state.through
            through = self._step(reader, before, lambda position, data: self._apply(state, position, data))
            if through is None:
                self._state = None
                return False
            state.through = through
            if through == before or 0 < end <= through:
                return True

    def _step(self, reader: Reader, after: int, each: Callable[[int, bytes], None]) -> int | None:
        """Give some records behind a position: up to where; None when they are gone."""
        found = reader.stretch(self._place, KEY, after, max_bytes=READ_BYTES, max_entries=10_000)
        if found.gap_to is not None:
            return None
        with self._lock:
            for position, data in found.entries:
                each(position, data)
        return found.through

    def _take(self, loading: Loading, position: int, data: bytes) -> None:
        if loading.state is not None:
            self._apply(loading.state, position, data)
            return
        record = decode(data)
        if record is not None:
            loading.take(position, record)

    def _apply(self, state: GroupState, position: int, data: bytes) -> None:
        record = decode(data)
        self._since_snapshot += len(data)
        if isinstance(record, Proposal):
            outcome = state.apply(position, record)
            self.counts.applied += 1
            if record.node == self.node:
                self._awaited[record.number] = outcome
            return
        state.through = position
        if isinstance(record, Part):
            self._since_snapshot = 0
        else:
            self.counts.damaged += 1
            log.error("record of groups left out", topic=self._place.topic, position=position, reason="it is damaged")

    # --- the end ----------------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Give up what is waited for."""
        self._producing.interrupt()

    def _let_go(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def close(self) -> None:
        """Let go of the topic."""
        self._producing.throw_away()
        self._let_go()


_UNKNOWN = Declined("unknown", "not read back")


def _name(node: str) -> str:
    return node.partition("/")[0]
