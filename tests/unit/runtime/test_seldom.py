"""What happens again and again is told at each power of two, until it is over."""

from sapflow.runtime.seldom import Seldom


def test_it_is_told_at_each_power_of_two_and_anew_when_it_was_over() -> None:
    seldom = Seldom()
    assert [times for times in (seldom.again("a") for _ in range(20)) if times] == [1, 2, 4, 8, 16]
    assert seldom.over("a") == 20
    assert seldom.over("a") == 0
    assert seldom.again("a") == 1


def test_things_do_not_mix_and_are_bounded() -> None:
    seldom = Seldom(max_keys=2)
    assert [seldom.again(key) for key in "aabab"] == [1, 2, 1, 0, 2]
    assert seldom.again("c") == 1
    assert seldom.over("a") == 0
