"""Any order of members, commits, resets and removals: a stale member changes nothing, and nothing goes backwards."""

from attrs import define
from hypothesis import given as given_by
from hypothesis import strategies as st

from phloem.engine.groups import Change, Commit, Declined, Group, Remove, Reset, Take, changed
from phloem.engine.layout import Place, Tail

POSITIONS = st.integers(0, 12)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), POSITIONS),
        st.tuples(st.just("commit"), st.integers(0, 8), POSITIONS, st.binary(max_size=2)),
        st.tuples(st.just("reset"), POSITIONS),
        st.tuples(st.just("remove")),
        st.tuples(st.just("grow"), st.integers(1, 3)),
        st.tuples(st.just("lose"), st.integers(1, 3)),
    ),
    max_size=30,
)


@define
class Model:
    """What must hold, in few lines: who reads, where the group is, what it keeps."""

    reader: int | None = None
    """The generation that may commit."""
    position: int = 0
    state: bytes = b""


def place(position: int) -> Place:
    return Place(position, position * 10, position * 2)


def tail(first: int, end: int) -> Tail:
    before = place(first - 1)
    return Tail(
        first, end + 1, end, (end - before.position) * 10, end * 2, before.position, before.records, before.bytes
    )


@given_by(STEPS)
def test_commits_are_fenced_and_never_go_backwards(steps: list[tuple]) -> None:  # type: ignore[type-arg]
    group: Group | None = None
    model = Model()
    end = 5
    given: list[int] = []
    for kind, *rest in steps:
        if kind == "grow":
            end += rest[0]
            continue
        if kind == "lose":
            end = max(0, end - rest[0])
            continue
        change: Change
        match kind:
            case "take":
                change = Take("acme", "g", place(min(rest[0], end)), 9)
            case "commit" if given:
                change = Commit("acme", "g", given[rest[0] % len(given)], place(rest[1]), rest[2])
            case "commit":
                continue
            case "reset":
                change = Reset("acme", "g", place(min(rest[0], end)))
            case _:
                change = Remove("acme", "g")
        after = changed(group, change, tail(1, end), 1)
        before = group
        if isinstance(after, Declined):
            assert before is None or isinstance(change, Commit)
            if isinstance(change, Commit) and before is not None:
                stale = change.generation != model.reader
                assert stale or change.place.position < model.position or change.place.position > end
            continue
        group = after
        match change:
            case Take():
                assert group is not None
                if before is None:
                    model = Model(position=change.first.position)
                elif model.position > end:
                    model.position = 0
                model.reader = group.generation
                given.append(group.generation)
                assert before is None or group.generation > before.generation
            case Commit():
                assert change.generation == model.reader
                assert model.position <= change.place.position <= end
                model.position, model.state = change.place.position, change.state
            case Reset():
                model = Model(None, change.place.position)
            case Remove():
                assert group is None
                model = Model()
                given.clear()  # it has no members then
        if group is not None:
            assert (group.place.position, group.state) == (model.position, model.state)
            assert group.place == place(model.position)
