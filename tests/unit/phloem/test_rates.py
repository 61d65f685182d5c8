"""Bytes per second by org."""

from __future__ import annotations

import pytest

from phloem.rates import OrgRates


def test_a_steady_org_is_known_within_some_seconds_and_a_silent_one_is_forgotten() -> None:
    rates = OrgRates(0.0)
    for second in range(1, 31):
        rates.add("acme", 1000)
        rates.at(float(second))
    assert rates.at(30.5)["acme"] == pytest.approx(1000, rel=0.01)
    for second in range(31, 61):
        rates.at(float(second))
    assert rates.at(61.0) == {}


def test_it_makes_no_difference_how_often_it_is_asked() -> None:
    often, seldom = OrgRates(0.0), OrgRates(0.0)
    for tick in range(1, 101):
        for one in (often, seldom):
            one.add("acme", 100)
        often.at(tick / 10)
    assert seldom.at(10.0)["acme"] == pytest.approx(often.at(10.0)["acme"], rel=0.01)
    assert often.at(10.0) is often.at(10.9)
