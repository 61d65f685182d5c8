"""Sources of malformed sessions are shut out for a time that grows, is bounded and spread, and ends."""

from hypothesis import given
from hypothesis import strategies as st

from meter.backoff import Backoff, BackoffSettings

SETTINGS = BackoffSettings(after=3, first_s=1.0, most_s=60.0, forget_s=600.0, max_sources=8)


def a_backoff(jitter: float = 1.0) -> Backoff:
    return Backoff(SETTINGS, lambda: jitter)


def test_f34_the_third_malformed_session_in_a_row_shuts_the_door_and_each_more_for_twice_as_long() -> None:
    backoff = a_backoff()
    now, waits = 0.0, []
    for _ in range(12):
        assert backoff.admits("192.0.2.1", now)
        waits.append(backoff.malformed("192.0.2.1", now))
        now += waits[-1]
    assert waits == [0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]


def test_while_the_door_is_shut_connections_are_turned_away_and_counted_and_others_are_not() -> None:
    backoff = a_backoff()
    for _ in range(3):
        backoff.malformed("192.0.2.1", 0.0)
    assert not backoff.admits("192.0.2.1", 0.99)
    assert backoff.admits("192.0.2.2", 0.99)
    assert backoff.admits("192.0.2.1", 1.0)
    assert (backoff.turned_away, backoff.shut) == (1, 1)


def test_a_session_that_ends_well_or_a_long_quiet_clears_the_address() -> None:
    backoff = a_backoff()
    for _ in range(5):
        backoff.malformed("192.0.2.1", 0.0)
        backoff.malformed("192.0.2.2", 0.0)
    backoff.well("192.0.2.1")
    assert backoff.malformed("192.0.2.1", 100.0) == 0
    assert backoff.malformed("192.0.2.2", 601.0) == 0


@given(st.floats(0, 1), st.integers(3, 2000))
def test_a_wait_is_never_less_than_half_nor_more_than_the_most(jitter: float, sessions: int) -> None:
    backoff = a_backoff(jitter)
    waits = [backoff.malformed("192.0.2.1", 0.0) for _ in range(sessions)]
    full = min(60.0, 2.0 ** (sessions - 3)) if sessions < 40 else 60.0
    assert full / 2 <= waits[-1] <= full


def test_sources_remembered_are_bounded_and_those_at_fault_last_stay() -> None:
    backoff = a_backoff()
    for number in range(100):
        for _ in range(3):
            backoff.malformed(f"192.0.2.{number}", 0.0)
    assert backoff.admits("192.0.2.0", 0.5)
    assert not backoff.admits("192.0.2.99", 0.5)
    assert len(backoff._sources) == SETTINGS.max_sources
