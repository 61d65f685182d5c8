"""What a collector's streams tell of their exporters: news are known, and the last of it kept within bounds."""

from collector.telling import SET_BYTES, TEMPLATE_BYTES, Room, Told
from sapflow.flows.columns.batches import decode
from tests.unit.flows.flows_made import messages, seen


def interface(number: int, name: str, domain: int = 1) -> bytes:
    return messages({"ingressInterface": number, "interfaceName": name}, scopes=1, domain=domain)


def sampler(rate: int) -> bytes:
    return messages({"samplerId": 1, "samplerRandomInterval": rate}, scopes=1, template=301)


def names(told: Told) -> list[object]:
    rows = [row for data in told.messages() for row in seen(decode(data))]
    return [row.get("interfaceName") or row["samplerRandomInterval"] for row in rows]


def test_what_the_batch_before_told_is_no_news_but_after_an_interruption() -> None:
    told = Told()
    batches = (interface(7, "a"), interface(7, "a"), interface(7, "b"), interface(7, "a"), interface(7, "a", domain=2))
    assert [told.hears(data) for data in batches] == [True, False, True, True, True]
    told.interrupted()
    assert told.hears(batches[-1])
    assert not told.hears(messages({"octetDeltaCount": 1}))


def test_the_same_set_is_kept_once_and_the_latest_word_is_last() -> None:
    told = Told()
    for data in (interface(7, "a"), sampler(10), interface(7, "b"), interface(7, "a"), sampler(20)):
        told.hears(data)
    assert names(told) == ["b", "a", 10, 20]


def test_of_one_template_the_last_sets_are_kept_and_others_lose_nothing_by_it() -> None:
    room = Room()
    told = Told("acme", room)
    told.hears(sampler(10))
    for number in range(4000):
        told.hears(interface(1, f"name {number}"))
    assert names(told)[0] == 10
    assert names(told)[-1] == "name 3999"
    assert 200 < len(names(told)) < 300
    assert room.used_bytes <= TEMPLATE_BYTES + SET_BYTES + 20
    told.forget()
    assert (room.used_bytes, told.messages()) == (0, [])


def test_more_than_there_is_room_for_is_not_kept_but_is_news_all_the_same() -> None:
    room = Room(most_bytes=3 * (SET_BYTES + 20))
    streams = [Told(f"org{n}", room) for n in range(5)]
    assert all(told.hears(interface(7, f"eth{number}")) for number, told in enumerate(streams))
    assert [len(names(told)) for told in streams] == [1, 1, 1, 0, 0]
    assert (room.not_kept, room.used_bytes <= room.most_bytes) == (2, True)
    streams[0].forget()
    assert streams[4].hears(interface(7, "renamed"))
    assert names(streams[4]) == ["renamed"]


def test_a_set_that_is_too_large_is_not_kept() -> None:
    told = Told()
    assert told.hears(messages(*({"ingressInterface": n, "interfaceName": "x" * 103} for n in range(606)), scopes=1))
    assert TEMPLATE_BYTES < 606 * 108 + SET_BYTES
    assert names(told) == []


def test_an_org_has_no_more_than_its_share_of_the_room() -> None:
    room = Room(most_bytes=4000)
    greedy, other = Told("greedy", room), Told("other", room)
    for number in range(20):
        greedy.hears(interface(number, "eth"))
    assert other.hears(interface(7, "eth0"))
    assert (names(other), room.used_bytes <= 2000 + SET_BYTES + 20) == (["eth0"], True)
