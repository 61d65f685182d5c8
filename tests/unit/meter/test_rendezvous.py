"""Bounded-load rendezvous hashing: balanced, alike everywhere, moving only what must."""

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from meter.rendezvous import BALANCE, place, ranked

KEYS = st.lists(st.binary(min_size=16, max_size=16), unique=True, max_size=200)
NAMES = st.sets(st.text(min_size=1, max_size=20), min_size=1, max_size=12)


def placed(keys: list[bytes], names: set[str], into: dict[bytes, str] | None = None) -> dict[bytes, str]:
    where = dict(into or {})
    for key in keys:
        where[key] = place(key, names, Counter(where.values()))
    return where


@given(KEYS, NAMES)
def test_no_collector_holds_more_than_the_bound(keys: list[bytes], names: set[str]) -> None:
    counts = Counter(placed(keys, names).values())
    assert all(count <= math.ceil(BALANCE * len(keys) / len(names)) for count in counts.values())


@given(KEYS, NAMES)
def test_all_who_know_the_same_find_the_same(keys: list[bytes], names: set[str]) -> None:
    by_name, another_way = sorted(names), sorted(names, reverse=True)
    assert [next(ranked(key, by_name)) for key in keys] == [next(ranked(key, another_way)) for key in keys]
    assert placed(keys, names) == placed(keys, set(another_way))


@given(KEYS, NAMES.filter(lambda names: len(names) > 1), st.data())
def test_when_a_collector_goes_only_its_keys_move_and_the_bound_holds(
    keys: list[bytes], names: set[str], data: st.DataObject
) -> None:
    before = placed(keys, names)
    gone = data.draw(st.sampled_from(sorted(names)))
    stay = {key: name for key, name in before.items() if name != gone}
    after = placed([key for key in keys if before[key] == gone], names - {gone}, stay)
    assert {key: after[key] for key in stay} == stay
    bound = math.ceil(BALANCE * len(keys) / (len(names) - 1))
    assert all(count <= bound for count in Counter(after.values()).values())


@given(st.binary(min_size=16, max_size=16), NAMES)
def test_without_load_a_key_goes_to_the_one_it_prefers_whoever_else_is_there(key: bytes, names: set[str]) -> None:
    first = next(ranked(key, names))
    assert place(key, names, {}) == first
    assert next(ranked(key, {first, *list(names)[:3]})) == first
