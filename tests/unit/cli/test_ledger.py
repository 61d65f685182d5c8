"""`status --ledger`, as people read it."""

from sapflow.cli.ledger import ledger_lines
from sapflow.ledger import Backlog, OrgLedger, StreamLedger
from sapflow.link.account import Account
from tests.unit.cli.test_files import run

ACCOUNT = Account(received=90, exported=100, lost=10, refused={"no_room": 5}, faults={"truncated": 2})


def test_a_ledger_is_shown_row_by_row_and_said_to_close() -> None:
    row = StreamLedger(ACCOUNT, 3, 85, exporter="192.0.2.1:9")
    lines = ledger_lines(OrgLedger("acme", row, 1, 80, 5, Backlog(2, 1, 30), [row]))
    figures = [line.split() for line in lines]
    assert ["+", "lost", "10", "0"] in figures
    assert ["+", "refused:", "no_room", "5"] in figures
    assert ["=", "read,", "to", "2", "55"] in figures
    assert ["192.0.2.1:9", "100", "90", "10", "5", "85"] in figures
    assert lines[-1] == "it closes"


def test_what_does_not_add_up_is_said_with_by_how_much() -> None:
    ledger = OrgLedger("acme", StreamLedger(ACCOUNT, 3, 84, 2), 1, 80, 5)
    assert not ledger.closes
    assert ledger_lines(ledger)[-4:] == [
        "it does not close:",
        "  1 records received differ from those stored and refused",
        "  2 batches came before the first that this log has seen",
        "  -1 records stored differ from those that the log holds and those that retention removed",
    ]


def test_a_ledger_comes_back_from_json() -> None:
    ledger = OrgLedger("acme", StreamLedger(ACCOUNT, 3, 84, 2, 7), 1, 80, 5, Backlog(2, 1, 30))
    assert OrgLedger.from_json(ledger.as_json()) == ledger


def test_options_of_the_ledger_are_refused_without_it() -> None:
    result = run("status", "--streams")
    assert (result.exit_code, "belong to --ledger" in result.stderr) == (2, True)


def test_what_each_group_has_read_and_what_the_log_cannot_say_is_shown() -> None:
    row = StreamLedger(ACCOUNT, 3, 85, unknown_batches=4)
    groups = {"billing": Backlog(2, 1, 30), "late": Backlog(1, 1, 40, uncertain=5)}
    ledger = OrgLedger("acme", row, 1, 70, 5, groups=groups, behind=7, uncertain=10, begun="the log was cut")
    assert OrgLedger.from_json(ledger.as_json()) == ledger
    lines = ledger_lines(ledger)
    figures = [" ".join(line.split()) for line in lines]
    assert figures[figures.index("= read by billing 55") + 1] == "+ backlog 30"
    assert figures[figures.index("= read by late 40") + 2] == "+ read or not, not known 5"
    assert "+ kept or removed, not known 10" in figures
    assert lines[-4:] == [
        "not all of the log: the log was cut",
        "4 batches were gone before they were counted",
        "7 positions at the log's end are not counted yet",
        "it closes",
    ]
