"""Numbers of datagrams: lost, late, repeated, begun anew."""

from hypothesis import given
from hypothesis import strategies as st

from sapflow.flows.ipfix.sequences import RESTART_AFTER, Numbers, SequenceCounter

WRAP = 1 << 32


def follow(numbers: list[int], count: int = 1) -> SequenceCounter:
    counter = SequenceCounter()
    for number in numbers:
        counter.follow(number % WRAP, count)
    return counter


def test_a_gap_is_lost_and_what_comes_late_fills_it() -> None:
    assert follow([1, 2, 6]).lost == 3
    found = follow([1, 2, 6, 4, 3, 7])
    assert (found.lost, found.late, found.repeats, found.restarts) == (1, 2, 0, 0)


def test_f29_a_repeat_is_neither_lost_nor_late() -> None:
    found = follow([1, 2, 2, 4, 1])
    assert (found.lost, found.late, found.repeats) == (1, 0, 2)


def test_f29_wrapping_is_no_gap() -> None:
    assert follow([WRAP - 20, WRAP - 10, 0, 10], count=10).lost == 0
    assert follow([WRAP - 20, 0], count=10).lost == 10


def test_what_follows_on_an_unknown_count_is_no_loss() -> None:
    counter = SequenceCounter()
    counter.follow(10, None)
    counter.follow(500, 3)
    counter.follow(503, 1)
    assert counter.lost == 0


def test_a_restart_without_uptime_is_found_when_repeats_go_on_and_on() -> None:
    numbers = list(range(1000, 1010)) + list(range(30))
    found = follow(numbers)
    assert (found.lost, found.restarts, found.repeats) == (0, 1, RESTART_AFTER - 1)


def test_a_restart_with_uptime_is_found_at_once_and_a_wrapped_uptime_is_none() -> None:
    counter = SequenceCounter()
    for number, uptime in ((100, WRAP - 500), (101, 400), (102, 1400), (0, 0)):
        counter.follow(number, 1, uptime)
    assert (counter.lost, counter.restarts) == (0, 0)
    counter = SequenceCounter()
    for number, uptime in ((100, 900_000), (0, 400), (1, 500)):
        counter.follow(number, 1, uptime)
    assert (counter.lost, counter.restarts, counter.repeats) == (0, 1, 0)


@given(st.integers(0, WRAP - 1), st.sets(st.integers(1, 58), max_size=20), st.randoms(use_true_random=False))
def test_the_gaps_are_exact_whatever_is_dropped_and_shuffled_within_a_window(
    begin: int, dropped: set[int], chance
) -> None:  # type: ignore[no-untyped-def]
    """Of 60 datagrams of 7 units each some are dropped, and neighbours swapped."""
    order = [index for index in range(60) if index not in dropped]
    for at in range(1, len(order) - 2, 2):
        if chance.random() < 0.5:
            order[at], order[at + 1] = order[at + 1], order[at]
    found = follow([begin + 7 * index for index in order], count=7)
    assert found.lost == 7 * len(dropped)
    assert found.restarts == found.repeats == 0


def own(counts: list[int], options: frozenset[int] = frozenset(), begin: int = 0) -> list[tuple[int, int]]:
    """(number, count) of datagrams as softflowd numbers them: each with its own, but not with the one options record
    that those in `options` hold."""
    found = []
    for index, count in enumerate(counts):
        begin += count - (index in options)
        found.append((begin % WRAP, count))
    return found


def follow_counted(datagrams: list[tuple[int, int]]) -> SequenceCounter:
    counter = SequenceCounter()
    for number, count in datagrams:
        counter.follow(number, count)
    return counter


def test_numbers_that_count_their_own_datagram_are_no_loss() -> None:
    found = follow_counted(own([17, 22, 16], frozenset({0})))
    assert (found.counts_own, found.lost) == (True, 0)


def test_what_was_taken_for_loss_and_repeats_before_numbers_are_known_to_count_their_own_is_neither() -> None:
    sent = own([17, 30, 9, 12, 25, 8, 11, 14], frozenset({0, 2, 4}))
    found = follow_counted(sent)
    assert (found.counts_own, found.lost, found.repeats, found.restarts) == (True, 0, 0, 0)
    told = found.take()
    assert told.exported == sum(count for _, count in sent)
    assert (told.lost, told.repeated) == (0, 0)


def test_what_such_numbers_miss_before_they_are_known_is_lost_all_the_same() -> None:
    sent = own([17, 30, 9, 12, 25, 8, 11, 14], frozenset({0}))
    del sent[2]
    assert (found := follow_counted(sent)).counts_own
    assert found.lost == 9


counts_of_datagrams = st.lists(st.integers(2, 30), min_size=20, max_size=60)


@given(counts_of_datagrams, st.sets(st.integers(0, 59)), st.integers(0, WRAP - 1))
def test_options_records_that_such_numbers_leave_out_are_no_loss(
    counts: list[int], options: set[int], begin: int
) -> None:
    told = own([5, 9, 7], begin=begin)
    found = follow_counted(told + own(counts, frozenset(options), begin=told[-1][0]))
    assert (found.counts_own, found.lost, found.restarts) == (True, 0, 0)


@given(counts_of_datagrams, st.sets(st.integers(0, 59), max_size=20), st.integers(0, WRAP - 1))
def test_what_is_dropped_of_such_numbers_is_lost_exactly(counts: list[int], dropped: set[int], begin: int) -> None:
    told = own([5, 9, 7], begin=begin)
    sent = own([*counts, 4], begin=told[-1][0])
    kept = [datagram for index, datagram in enumerate(sent) if index not in dropped or index == len(counts)]
    found = follow_counted(told + kept)
    assert found.counts_own
    assert found.lost == sum(counts[index] for index in dropped if index < len(counts))


@given(counts_of_datagrams, st.integers(0, WRAP - 1))
def test_numbers_by_the_book_are_never_taken_for_the_other_kind(counts: list[int], begin: int) -> None:
    numbers = [(begin + sum(counts[:index])) % WRAP for index in range(len(counts))]
    found = follow_counted(list(zip(numbers, counts, strict=True)))
    assert (found.counts_own, found.lost) == (False, 0)


def test_a_loss_of_just_what_makes_one_step_look_so_stays_a_loss() -> None:
    found = follow_counted([(0, 10), (15, 15), (30, 7), (37, 9)])
    assert (found.counts_own, found.lost) == (False, 5)


DATAGRAMS = st.lists(
    st.tuples(
        st.integers(0, 40),
        st.booleans(),
        st.integers(0, 40),
        st.sampled_from(["came", "came", "came", "lost", "twice", "late", "anew", "jumps"]),
    ),
    max_size=60,
)


@given(st.integers(0, WRAP - 1), DATAGRAMS, st.booleans(), st.sets(st.integers(0, 59)))
def test_what_was_exported_is_what_came_and_what_did_not(
    number: int, datagrams: list[tuple[int, bool, int, str]], counts_own: bool, asked: set[int]
) -> None:
    """Whatever is lost, late, repeated or unreadable, whether the exporter begins anew, and whenever one asks."""
    counter, total, came, held_back = SequenceCounter(), Numbers(), 0, []

    def take(number: int, count: int, known: bool, readable: int) -> int:
        read = count if known else min(count, readable)
        counter.follow(number, count if known else None, at_least=read)
        return read

    for index, (count, known, readable, fate) in enumerate(datagrams):
        if fate == "anew":
            number = 0
        elif fate == "jumps":
            number = (number + (1 << 30)) % WRAP
        says = (number + count) % WRAP if counts_own else number
        number = (number + count) % WRAP
        if fate == "late":
            held_back.append((says, count, known, readable))
        elif fate != "lost":
            for _ in range(2 if fate == "twice" else 1):
                came += take(says, count, known, readable)
            while held_back and index % 3 == 0:
                came += take(*held_back.pop())
        if index in asked:
            total += counter.take()
    total += counter.take()
    assert total.exported + total.repeated == came + total.lost + total.unread, total
    assert total.lost == counter.lost


def test_what_was_exported_is_counted_over_the_wrap_and_a_new_beginning() -> None:
    counter = SequenceCounter()
    for number in (WRAP - 20, WRAP - 10, 0, 10):
        counter.follow(number, 10, 900_000)
    assert counter.take() == Numbers(exported=40)
    counter.follow(5, 3, 100)
    counter.follow(18, 2, 200)
    assert counter.take() == Numbers(exported=15, lost=10)


def test_what_a_datagram_held_that_could_not_be_counted_is_known_by_the_next_number() -> None:
    counter = SequenceCounter()
    counter.follow(100, None, at_least=2)
    assert counter.take() == Numbers(exported=2)
    counter.follow(107, 3)
    assert counter.take() == Numbers(exported=8, unread=5)
