"""A receiver's budget: never exceeded, shared fairly, never stuck."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapflow.errors import LinkError
from sapflow.link import CreditPool

MOST = 150


def a_pool(budget: int = 400, share: float = 1.0) -> CreditPool:
    return CreditPool(budget, org_share=share, max_want_bytes=MOST)


def test_nothing_is_granted_that_was_not_asked_for() -> None:
    pool = a_pool()
    pool.open("a", "acme")
    assert pool.turn() == []


def test_what_is_asked_is_granted_whole_or_not_yet() -> None:
    pool = a_pool(budget=200)
    pool.open("a", "acme")
    pool.open("b", "acme")
    pool.want("a", 150)
    pool.want("b", 60)
    assert pool.turn() == [("a", 150)]
    pool.received("a", 150)
    pool.release("acme", 10)
    assert pool.turn() == [("b", 60)]


def test_asking_for_more_than_fits_at_once_is_the_senders_fault() -> None:
    pool = a_pool()
    pool.open("a", "acme")
    with pytest.raises(LinkError, match="asks for 151 bytes"):
        pool.want("a", 151)


def test_the_sum_of_grants_never_exceeds_the_budget() -> None:
    pool = a_pool(budget=250)
    for key in "abcd":
        pool.open(key, key)
        pool.want(key, 100)
    assert [key for key, _ in pool.turn()] == ["a", "b"]
    pool.received("a", 100)
    pool.release("a", 100)
    assert [key for key, _ in pool.turn()] == ["c"]


def test_an_org_whose_consumer_is_gone_cannot_starve_another() -> None:
    pool = a_pool(budget=400, share=0.5)
    pool.open("slow", "slow")
    pool.want("slow", 150)
    assert pool.turn() == [("slow", 150)]
    pool.received("slow", 150)
    pool.want("slow", 250)
    assert pool.turn() == []
    pool.open("fast", "fast")
    for _ in range(20):
        pool.want("fast", pool._streams["fast"].granted + 50)
        ((key, _limit),) = pool.turn()
        assert key == "fast"
        pool.received("fast", 50)
        pool.release("fast", 50)


def test_a_closed_stream_gives_back_what_it_did_not_use() -> None:
    pool = a_pool()
    pool.open("a", "acme")
    pool.want("a", 100)
    pool.turn()
    pool.received("a", 30)
    pool.close("a")
    assert pool.used_bytes == 30
    pool.release("acme", 30)
    assert pool.used_bytes == 0


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 150)), min_size=1, max_size=200), st.data())
def test_every_ask_is_granted_in_the_end_and_the_budget_holds(asks: list[tuple[str, int]], data: st.DataObject) -> None:
    pool = a_pool(budget=300, share=0.5)
    wanted: dict[str, int] = {}
    granted: dict[str, int] = {}
    received: dict[str, int] = {}
    held: list[tuple[str, int]] = []

    def org(key: str) -> str:
        return "xy"[ord(key) % 2]

    def grant() -> None:
        for key, limit in pool.turn():
            assert isinstance(key, str)
            assert granted.get(key, 0) < limit <= wanted[key]
            granted[key] = limit
        outstanding = sum(granted.values()) - sum(received.values())
        assert outstanding + sum(size for _, size in held) == pool.used_bytes <= pool.budget_bytes

    def use(key: str) -> None:
        size = granted.get(key, 0) - received.get(key, 0)
        if size:
            received[key] = received.get(key, 0) + size
            pool.received(key, size)
            held.append((key, size))

    for key, size in asks:
        if key not in wanted:
            pool.open(key, org(key))
        wanted[key] = min(wanted.get(key, 0) + size, granted.get(key, 0) + MOST)
        pool.want(key, wanted[key])
        grant()
        if data.draw(st.booleans()):
            use(key)
        if held and data.draw(st.booleans()):
            done, amount = held.pop(0)
            pool.release(org(done), amount)
            grant()
    for _ in range(1000):
        if granted == wanted:
            break
        for key in wanted:
            use(key)
        while held:
            done, amount = held.pop(0)
            pool.release(org(done), amount)
        grant()
    assert granted == wanted
