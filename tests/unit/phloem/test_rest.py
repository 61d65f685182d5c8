"""The log rests from a backlog as long as there are others, in proportion to what the backlog took."""

from phloem.rest import OTHERS_S, Rest


def test_it_rests_after_a_commit_that_leaves_a_backlog_while_there_are_others() -> None:
    rest = Rest(2.0)
    rest.after(0.0, 0.1, brief=1, backlog=True)
    assert rest.until == 0.1 + 2.0 * 0.1
    # What others have stored meanwhile lengthens nothing …
    rest.after(0.15, 0.2, brief=2, backlog=True)
    assert rest.until == 0.1 + 2.0 * 0.1
    # … and where there is no backlog any more, there is no rest.
    rest.after(0.4, 0.5, brief=2, backlog=False)
    assert rest.until < 0


def test_it_does_not_rest_when_all_have_a_backlog_or_one_is_alone() -> None:
    rest = Rest(1.0)
    rest.after(0.0, 0.1, brief=0, backlog=True)
    assert rest.until < 0
    rest.after(0.1, 0.2, brief=1, backlog=True)
    ended = 0.2 + OTHERS_S
    rest.after(ended - 0.1, ended - 0.01, brief=1, backlog=True)
    assert rest.until > ended
    assert rest.is_shared(ended - 0.01)
    assert not rest.is_shared(ended)
    until = rest.until
    rest.after(until, until + 0.1, brief=1, backlog=True)
    assert rest.until == until, "nobody else was heard of for long"


def test_a_ratio_of_0_is_no_rest() -> None:
    rest = Rest(0.0)
    rest.after(0.0, 0.1, brief=1, backlog=True)
    assert rest.until <= 0.1
    assert not rest.is_shared(0.1)
