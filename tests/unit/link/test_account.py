"""The account that travels with a batch: round trips, sums, bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sapflow.errors import LinkError
from sapflow.link.account import (
    MAX_ACCOUNT_BYTES,
    MAX_FIGURE,
    MAX_REASONS,
    NOTHING,
    OTHER,
    Account,
    decode_account,
    together,
)

FIGURE = st.one_of(st.integers(-3, 3), st.integers(-MAX_FIGURE, MAX_FIGURE))
NAMES = [*(f"reason_{number}" for number in range(10)), "y" * 32]
REASONS = st.dictionaries(st.sampled_from(NAMES), FIGURE.map(lambda value: value or 1), max_size=8)
ACCOUNTS = st.builds(
    lambda figures, refused, faults, begins: Account.of(figures, refused, faults, begins=begins),
    st.lists(FIGURE, min_size=9, max_size=9),
    REASONS,
    REASONS,
    st.booleans(),
)
RECORDS = st.integers(0, 1 << 20)


@given(ACCOUNTS, RECORDS)
def test_an_account_comes_back_as_it_was(account: Account, records: int) -> None:
    data = account.encode(records)
    assert len(data) <= MAX_ACCOUNT_BYTES
    assert decode_account(data, records) == account


@given(ACCOUNTS, ACCOUNTS)
def test_accounts_are_sums(one: Account, other: Account) -> None:
    assert one + other == other + one
    assert (one + NOTHING).figures == one.figures
    assert sum((one + other).refused.values()) == sum(one.refused.values()) + sum(other.refused.values())


def test_what_is_as_usual_takes_no_byte_and_a_little_loss_a_few() -> None:
    assert Account.usual(1000).encode(1000) == b""
    assert decode_account(b"", 7) == Account.usual(7)
    assert len(Account(received=1000, exported=1003, lost=3).encode(1000)) == 5


@given(st.binary(max_size=80), RECORDS)
def test_any_bytes_are_an_account_or_a_link_error(data: bytes, records: int) -> None:
    try:
        account = decode_account(data, records)
    except LinkError:
        return
    assert all(abs(figure) <= MAX_FIGURE for figure in account.figures)
    assert len(account.refused) <= MAX_REASONS


@given(ACCOUNTS, st.integers(1, 40))
def test_an_account_that_is_cut_off_is_a_link_error(account: Account, cut: int) -> None:
    data = account.encode(0)
    if len(data) > cut:
        with pytest.raises(LinkError, match="account"):
            decode_account(data[:-cut], 0)


def test_reasons_are_bounded_and_the_rest_is_together() -> None:
    many = together({}, {f"reason {number}": 1 for number in range(100)})
    assert len(many) == MAX_REASONS
    assert sum(many.values()) == 100
    assert together({}, {"x" * 33: 2}) == {OTHER: 2}
