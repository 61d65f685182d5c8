"""While there are others a backlog gets less of the log, by what it costs; else all that there is."""

import pytest

from phloem.rest import MOST_S, OTHERS_S, Rest

MIB = 1 << 20


def shared(ratio: float = 2.0, brief_s: float = 0.01) -> Rest:
    """With others, whose commits take that long; at 1.0."""
    rest = Rest(ratio, MIB)
    rest.after(1.0 - brief_s, 1.0, brief=1, heavy=False, backlog=False)
    return rest


def test_it_rests_by_what_a_backlog_cost_while_there_are_others() -> None:
    rest = shared()
    rest.after(1.0, 1.03, brief=1, heavy=True, backlog=True)
    assert rest.until == pytest.approx(1.03 + 2.0 * (0.03 - 0.01))
    until = rest.until
    # What others have stored meanwhile lengthens nothing …
    rest.after(1.04, 1.05, brief=2, heavy=False, backlog=True)
    assert rest.until == until
    # … and where there is no backlog any more, there is no rest.
    rest.after(1.08, 1.09, brief=2, heavy=True, backlog=False)
    assert rest.until < 0


def test_a_commit_that_hangs_is_no_reason_to_rest_for_long() -> None:
    rest = shared()
    rest.after(1.0, 61.0, brief=2, heavy=True, backlog=True)
    assert rest.until == pytest.approx(61.0 + MOST_S)


def test_a_commit_takes_less_of_a_backlog_while_that_makes_it_long_and_more_again_when_it_does_not() -> None:
    rest = shared()
    assert rest.part_bytes(1.0) == MIB
    parts = []
    for at in range(5):
        began = 1.0 + at / 100
        rest.after(began, began + 0.03, brief=2 + at, heavy=True, backlog=True)
        parts.append(rest.part_bytes(began + 0.03))
    assert parts == [MIB // 2, MIB // 4, MIB // 8, MIB // 8, MIB // 8]
    for at in range(4):
        rest.after(1.2, 1.212, brief=10 + at, heavy=True, backlog=True)
        parts.append(rest.part_bytes(1.212))
    assert parts[5:] == [MIB // 4, MIB // 2, MIB, MIB]
    assert rest.until < 1.22, "it cost next to nothing, and next to nothing is the rest"


def test_where_a_commit_takes_long_whatever_is_in_it_nothing_rests() -> None:
    rest = shared(brief_s=0.5)
    rest.after(1.0, 1.5, brief=2, heavy=True, backlog=True)
    assert (rest.until, rest.part_bytes(1.5)) == (pytest.approx(1.5), MIB)


def test_what_a_commit_without_a_backlog_takes_is_learned_but_not_of_one_that_hung() -> None:
    rest = shared(brief_s=0.01)
    # It counts as twice as long as the others, and for an eighth.
    rest.after(1.0, 1.9, brief=2, heavy=False, backlog=True)
    rest.after(1.9, 1.94, brief=3, heavy=True, backlog=True)
    assert rest.until == pytest.approx(1.94 + 2.0 * (0.04 - (0.01 + 0.01 / 8)))


def test_all_that_have_a_backlog_and_one_that_is_alone_get_all() -> None:
    rest = Rest(2.0, MIB)
    rest.after(0.0, 0.1, brief=0, heavy=True, backlog=True)
    assert (rest.until < 0, rest.part_bytes(0.1)) == (True, None)
    rest = shared()
    rest.after(1.0, 1.3, brief=1, heavy=True, backlog=True)
    assert rest.part_bytes(1.3) == MIB // 2
    later = 1.0 + OTHERS_S
    rest.after(later, later + 0.3, brief=1, heavy=True, backlog=True)
    assert (rest.until < 0, rest.part_bytes(later + 0.3)) == (True, None)
    rest.after(later, later + 0.3, brief=2, heavy=False, backlog=True)
    assert rest.part_bytes(later + 0.3) == MIB, "they begin again with all"


def test_a_ratio_of_0_is_no_rest_and_no_smaller_commit() -> None:
    rest = shared(ratio=0.0)
    rest.after(1.0, 1.3, brief=2, heavy=True, backlog=True)
    assert rest.until <= 1.3
    assert rest.part_bytes(1.3) is None
