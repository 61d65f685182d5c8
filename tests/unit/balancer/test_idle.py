"""Collectors that do no work, whatever they say."""

from balancer.idle import Idle, IdleCollectors, IdleSettings, Work

NEVER = float("-inf")


def judged(idle: IdleCollectors, seconds: range, **work: Work) -> list[Idle]:
    found: list[Idle] = []
    for now in seconds:
        # Those without a fixed time acknowledged something just now.
        its = {name: Work(w.outstanding, now if w.progress_at == 0 else w.progress_at) for name, w in work.items()}
        found += idle.judge(its, float(now))
    return found


WORKS, STALLED, HAS_NONE = Work(True, 0), Work(True, NEVER), Work(False, NEVER)


def test_one_that_acknowledges_nothing_while_another_does_is_left() -> None:
    assert judged(IdleCollectors(), range(5), c1=STALLED, c2=WORKS) == []
    assert judged(IdleCollectors(), range(6), c1=STALLED, c2=WORKS) == [
        Idle("c1", 15.0, "nothing acknowledged for 5 s while others do")
    ]


def test_when_nobody_acknowledges_nobody_is_left() -> None:
    assert judged(IdleCollectors(), range(600), c1=STALLED, c2=STALLED) == []


def test_when_only_one_has_work_another_is_tried_once() -> None:
    idle = IdleCollectors()
    first = judged(idle, range(60), c1=STALLED, c2=HAS_NONE)
    assert [one.reason for one in first] == ["nothing acknowledged for 5 s and others may"]
    # The work went to the other, which does no more with it: so it is not the collectors.
    assert judged(idle, range(60, 600), c1=HAS_NONE, c2=STALLED) == []
    # Once anybody has acknowledged, that is forgotten.
    assert judged(idle, range(600, 610), c1=HAS_NONE, c2=WORKS) == []
    assert [one.collector for one in judged(idle, range(610, 700), c1=HAS_NONE, c2=STALLED)] == ["c2"]


def test_one_that_owes_a_sign_for_longer_than_that_is_left_at_once() -> None:
    silent = Work(True, 0.0, since=1.0)
    works = Work(True, 20.0)
    [left] = IdleCollectors().judge({"c1": silent, "c2": works}, 20.0)
    assert (left.collector, left.reason) == ("c1", "nothing acknowledged for 19 s while others do")
    answered_just_now = Work(True, 20.0, since=1.0)
    assert IdleCollectors().judge({"c1": answered_just_now, "c2": works}, 20.0) == []


def test_a_single_collector_is_never_left() -> None:
    assert judged(IdleCollectors(), range(600), c1=STALLED) == []


def test_one_without_work_for_a_moment_begins_anew() -> None:
    idle = IdleCollectors()
    assert judged(idle, range(4), c1=STALLED, c2=WORKS) == []
    assert judged(idle, range(4, 5), c1=HAS_NONE, c2=WORKS) == []
    assert judged(idle, range(5, 10), c1=STALLED, c2=WORKS) == []
    assert len(judged(idle, range(10, 11), c1=STALLED, c2=WORKS)) == 1


def test_it_is_left_for_longer_each_time_up_to_a_most() -> None:
    idle = IdleCollectors(IdleSettings(after_s=5.0, pause_s=30.0))
    pauses, now = [], 0
    for _ in range(12):
        found: list[Idle] = []
        while not found:
            found = judged(idle, range(now, now + 1), c1=STALLED, c2=WORKS)
            now += 1
        pauses.append(round(found[0].until - (now - 1)))
    assert pauses[:3] == [30, 60, 90]
    assert pauses[-1] == 300
