"""What goes out for each byte in, and when that is an alarm."""

from attrs import define

from sapflow.monitor.ratio import Flow, Ratio


@define
class Watched:
    """A ratio that is read once a second."""

    ratio: Ratio
    total: Flow = Flow()
    now: float = 0.0

    def second(self, taken: int, given: int, due: int) -> bool:
        self.now += 1.0
        self.total = Flow(self.total.taken + taken, self.total.given + given, self.total.due + due)
        return self.ratio.note(self.total, self.now)


def test_twice_what_should_go_out_is_an_alarm_within_ten_seconds() -> None:
    watched = Watched(Ratio())
    for _ in range(5):
        watched.second(100, 100, 100)
    told = [watched.second(100, 200, 100) for _ in range(10)]
    assert told == [False] * 9 + [True]
    assert (watched.ratio.measured, watched.ratio.expected) == (2.0, 1.0)
    assert watched.second(100, 100, 100)
    assert not watched.ratio.is_alarming


def test_less_than_should_go_out_is_an_alarm_too() -> None:
    watched = Watched(Ratio())
    assert any(watched.second(100, 50, 300) for _ in range(11))


def test_what_is_sent_again_after_a_cut_is_none() -> None:
    watched = Watched(Ratio())
    for _ in range(20):
        watched.second(100, 0, 100)
        watched.second(100, 200, 100)
    assert not watched.ratio.is_alarming


def test_a_second_in_which_nothing_comes_says_nothing() -> None:
    watched = Watched(Ratio())
    for _ in range(12):
        watched.second(100, 300, 100)
    watched.second(0, 0, 0)
    assert watched.ratio.is_alarming


def test_four_per_cent_are_none() -> None:
    watched = Watched(Ratio())
    assert not any(watched.second(100, 104, 100) for _ in range(30))
