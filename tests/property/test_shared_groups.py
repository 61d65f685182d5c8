"""Any order of what nodes propose, with any knowledge of one another: one reader, nothing backwards, all agree."""

from __future__ import annotations

from attrs import define, evolve
from hypothesis import given as given_by
from hypothesis import strategies as st

from phloem.engine.groups import Beat, Commit, Declined, Group, Leave, Remove, Reset, SharedChange, Take
from phloem.engine.kafka.group_records import Loading, decode, encode, snapshot
from phloem.engine.kafka.group_state import GroupState, Proposal
from phloem.engine.layout import Place

END = 12
NODES = ("a/1", "a/2", "b/1")
"""The second is the first, started again."""
POSITIONS = st.integers(0, END)
SEATS = st.integers(1, 2)
CHANGES = st.one_of(
    st.builds(Take, st.just("acme"), st.just("g"), st.builds(Place, POSITIONS), st.just(9), SEATS),
    st.builds(
        Commit,
        st.just("acme"),
        st.just("g"),
        st.integers(1, 6),
        st.builds(Place, POSITIONS),
        st.binary(max_size=2),
        st.just(0),
        SEATS,
    ),
    st.builds(Reset, st.just("acme"), st.just("g"), st.builds(Place, POSITIONS)),
    st.builds(Remove, st.just("acme"), st.just("g")),
    st.builds(Leave, st.just("acme"), st.just("g"), SEATS),
    st.builds(Beat),
)
STEPS = st.lists(st.tuples(st.sampled_from(NODES), CHANGES, st.booleans()), max_size=40)


@define
class Model:
    """Who reads, with which generation, and where the group is."""

    reader: tuple[str, int] | None = None
    generation: int = 0
    position: int = 0


def proposals(steps: list[tuple[str, SharedChange, bool]]) -> list[Proposal]:
    """As nodes write them: `knows` is whether the node knew of all signs of life when it did."""
    last: dict[str, int] = {}
    found = []
    for at, (node, change, knows) in enumerate(steps, 1):
        heard = max(last.values(), default=0) if knows else 0
        found.append(Proposal(node, at, change, at, 1, END + 1, heard))
        last[node] = at
    return found


@given_by(STEPS)
def test_one_reads_and_only_it_commits_and_never_backwards(steps: list[tuple[str, SharedChange, bool]]) -> None:
    state, model = GroupState(), Model()
    for at, proposal in enumerate(proposals(steps), 1):
        before, change = state.get("acme", "g"), proposal.change
        outcome = state.apply(at, proposal)
        standing = state.get("acme", "g")
        if isinstance(outcome, Declined):
            assert standing == before
            continue
        match change:
            case Take():
                assert isinstance(outcome, Group)
                assert before is None or outcome.generation == before.group.generation + 1
                mine = model.reader is None or model.reader[0][0] == proposal.node[0]
                assert mine or proposal.heard, "taken from a node of which no silence was known"
                position = model.position if before is not None else change.first.position
                model = Model((proposal.node, change.seat), outcome.generation, position)
            case Commit(generation=generation, place=place, seat=seat):
                assert (proposal.node, seat) == model.reader
                assert generation == model.generation
                assert model.position <= place.position <= END
                model.position = place.position
            case Reset(place=place):
                model = Model(None, model.generation + 1, place.position)
            case Leave(seat=seat):
                assert (proposal.node, seat) == model.reader
                model.reader = None
            case Remove():
                model = Model()
        if standing is not None:
            found = (standing.group.place.position, standing.group.generation)
            assert found == (model.position, model.generation)
            assert ((standing.node, standing.seat) if standing.node else None) == model.reader


@given_by(STEPS, st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_who_begins_with_a_snapshot_comes_to_the_same(
    steps: list[tuple[str, SharedChange, bool]], taken: int, written: int, kept: int
) -> None:
    """A snapshot of after `taken` records, written after `written`; those after the `kept`th are still there."""
    records = proposals(steps)
    taken = min(taken, len(records))
    written = max(taken, min(written, len(records)))
    state = GroupState()
    parts = []
    for at, proposal in enumerate(records, 1):
        if at - 1 == taken:
            parts = list(snapshot(state, "s"))
        state.apply(at, proposal)
    if taken == len(records):
        parts = list(snapshot(state, "s"))
    kept = min(kept, taken)
    loading = Loading(kept)
    topic = [(at, record) for at, record in enumerate(records, 1) if at > kept]
    cut = sum(at <= written for at, _ in topic)
    # In a log each record has a position of its own: what comes behind the parts stands further on.
    shift = len(parts)
    stands = [(at, record) for at, record in topic[:cut]]
    stands += [(written + 1 + index, part) for index, part in enumerate(parts)]  # type: ignore[misc]
    # What their nodes had heard of stands there, too.
    stands += [
        (at + shift, evolve(record, heard=record.heard + shift * (record.heard > written)))
        for at, record in topic[cut:]
    ]
    for at, record in stands:
        again = decode(encode(record))
        assert again == record
        if loading.state is None:
            loading.take(at, again)
        elif isinstance(again, Proposal):
            loading.state.apply(at, again)
    assert loading.state is not None
    assert list(loading.state.all()) == list(state.all())
    assert loading.state.state_bytes == state.state_bytes


@given_by(STEPS, st.lists(st.integers(0, 39), max_size=5))
def test_what_stands_there_twice_counts_once(steps: list[tuple[str, SharedChange, bool]], again: list[int]) -> None:
    records = [evolve(record, heard=0) for record in proposals(steps)]
    once, twice = GroupState(), GroupState()
    at = 0
    for index, record in enumerate(records):
        once.apply(index + 1, record)
        at += 1
        twice.apply(at, record)
        for repeated in again:
            if repeated <= index:
                at += 1
                assert isinstance(twice.apply(at, records[repeated]), Declined)
    assert list(once.all()) == list(twice.all())
