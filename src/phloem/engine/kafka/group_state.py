"""All consumer groups of a fleet, as the records of its groups' topic say; pure.

Nodes write what they want changed into one partition, and every node applies all of it in order: so each comes to the
same state, and learns what became of its own. No node decides for others, and none has to be asked.

Rule 1: what may become of a group is `changed`, as in the embedded log; what it asks of an org's log (where it begins
and ends) is what the node that proposes had seen of it, and stands in the record.
Rule 2: a group has one reader, a *seat* of a node. Another node may take from it only by naming the last sign of life
of that node that it knows: if there has been one since, the reader stays. A node may always take from itself, or from
what it was before a restart (the name before the `/`), for it knows its own members.
Rule 3: only the reader commits, with its generation. A node that was believed dead may read on, and moves nothing.
Rule 4: a node's proposals are numbered, and one that stands there twice is applied once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from attrs import evolve, frozen

from phloem.engine.groups import (
    Beat,
    Change,
    Commit,
    Declined,
    Group,
    Leave,
    Remove,
    Reset,
    SharedChange,
    Take,
    changed,
)
from phloem.engine.layout import Tail

MAX_STATE_BYTES = 64 << 20
"""Of all groups' states together, since every node holds them. The same in every node, or they would disagree."""
MAX_NODES = 1000
"""Whose last sign of life is kept: those heard of last."""


@frozen
class Proposal:
    """One record: what a node wants changed, and what it knew."""

    node: str
    """Its name, `/`, and what tells it from its predecessors."""
    number: int
    """Ascending with each of the node's."""
    change: SharedChange
    now_us: int
    first: int = 1
    """The org's log began here, and `next` came next in it."""
    next: int = 1
    heard: int = 0
    """The last sign of life of the reader's node, for whom takes from it."""


Outcome = Group | Declined | None


@frozen
class Standing:
    """A group, and who reads for it: nobody when `node` is empty."""

    group: Group
    node: str = ""
    seat: int = 0


@frozen
class Sign:
    """A node's last record: its number, and the position where it stands."""

    number: int
    position: int


class GroupState:
    """Applied in order, up to the position `through`."""

    def __init__(self) -> None:
        self.through = 0
        self.signs: OrderedDict[str, Sign] = OrderedDict()
        self.state_bytes = 0
        self._orgs: dict[str, dict[str, Standing]] = {}

    def get(self, org: str, name: str) -> Standing | None:
        """A group."""
        return self._orgs.get(org, {}).get(name)

    def of(self, org: str) -> dict[str, Standing]:
        """An org's groups."""
        return dict(self._orgs.get(org, {}))

    def orgs(self) -> list[str]:
        """Those that have groups."""
        return list(self._orgs)

    def all(self) -> Iterator[tuple[str, str, Standing]]:
        """Each group of each org."""
        for org, groups in self._orgs.items():
            for name, standing in groups.items():
                yield org, name, standing

    def put(self, org: str, name: str, standing: Standing | None) -> None:
        """What is known of a group from now on; None: it is no more."""
        groups = self._orgs.setdefault(org, {})
        before = groups.pop(name, None)
        self.state_bytes -= len(before.group.state) if before is not None else 0
        if standing is not None:
            groups[name] = standing
            self.state_bytes += len(standing.group.state)
        elif not groups:
            del self._orgs[org]

    def heard_of(self, node: str) -> int:
        """Where a node's last record stands; 0 when none is known."""
        sign = self.signs.get(node)
        return sign.position if sign is not None else 0

    def apply(self, position: int, proposal: Proposal) -> Outcome:
        """The record at a position, which is behind all before: what became of it."""
        assert position > self.through, (position, self.through)
        self.through = position
        known = self.signs.pop(proposal.node, None)
        self.signs[proposal.node] = Sign(max(proposal.number, known.number if known else 0), position)
        if len(self.signs) > MAX_NODES:
            self.signs.popitem(last=False)
        if known is not None and proposal.number <= known.number:
            return Declined("fenced", "it was applied before")
        match proposal.change:
            case Beat():
                return None
            case Leave() as leave:
                return self._leave(proposal.node, leave)
            case change:
                return self._change(proposal, change)

    def _leave(self, node: str, leave: Leave) -> Outcome:
        standing = self.get(leave.org, leave.name)
        if standing is None or (standing.node, standing.seat) != (node, leave.seat):
            return Declined("fenced", "it was not the reader")
        self.put(leave.org, leave.name, Standing(standing.group))
        return standing.group

    def _change(self, proposal: Proposal, change: Change) -> Outcome:
        org, name = change.org, change.name
        before = self.get(org, name)
        declined = self._declined(proposal, change, before)
        if declined is not None:
            return declined
        group = before.group if before is not None else None
        after = changed(group, change, Tail(proposal.first, proposal.next), proposal.now_us)
        if isinstance(after, Declined):
            return after
        node, seat = (before.node, before.seat) if before is not None else ("", 0)
        match change:
            case Take(seat=seat):
                node = proposal.node
            case Reset():
                # Whoever was reading begins again, as anybody else may.
                node, seat = "", 0
        # How far it was beyond the log's end is for who takes it now.
        self.put(org, name, Standing(evolve(after, ahead=0), node, seat) if after is not None else None)
        return after

    def _declined(self, proposal: Proposal, change: Change, before: Standing | None) -> Declined | None:
        """Why it is not to be, by who reads for the group and by what there may be."""
        match change:
            case Take(most_groups=most):
                if before is None and len(self._orgs.get(change.org, ())) >= most:
                    return Declined("full", f"org '{change.org}' has {most} groups, as many as it may")
                if before is not None and not self._may_take(proposal, before.node):
                    return Declined("held", f"a member at node {_name(before.node)} reads for it")
            case Commit(seat=seat, state=state):
                if before is not None and (before.node, before.seat) != (proposal.node, seat):
                    return Declined("fenced", "another member has taken over since, or the group was reset")
                grows = len(state) - (len(before.group.state) if before is not None else 0)
                if grows > 0 and self.state_bytes + grows > MAX_STATE_BYTES:
                    return Declined(
                        "state", f"{self.state_bytes:,} bytes of state of all groups (limit {MAX_STATE_BYTES:,})"
                    )
            case Remove():
                if before is not None and before.node and not self._may_take(proposal, before.node):
                    reason = f"a member at node {_name(before.node)} reads for group '{change.name}'"
                    return Declined("in use", f"{reason}; stop it first, or reset the group instead")
        return None

    def _may_take(self, proposal: Proposal, node: str) -> bool:
        return not node or _name(node) == _name(proposal.node) or self.heard_of(node) <= proposal.heard


def _name(node: str) -> str:
    return node.partition("/")[0]
