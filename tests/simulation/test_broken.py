"""With the product broken on purpose some seed of a few fails, and says why: the simulation finds what it looks for."""

from collections.abc import Iterable
from typing import Any

import pytest
import trio
from attrs import evolve
from tools.simulate import Scenario, simulate
from tools.simulate.faults import Plan

from collector.endpoints import Endpoint, StreamState
from collector.sessions import Collector
from phloem.commits import Committer
from phloem.connections import Connections, _CollectorLink
from phloem.engine.engine import Outcome
from phloem.engine.writing import Writer
from sapflow.link import BatchReceived, CreditPool, Event
from sapflow.orgs import OrgTable

SEEDS = 30


def found(text: str, kinds: tuple[str, ...] | None = None) -> bool:
    """Whether some seed of a few says so, with faults as they are drawn or of some kinds only."""
    scenarios: Iterable[Scenario] = map(Scenario.drawn, range(SEEDS))
    if kinds is not None:
        scenarios = (evolve(scenario, plan=Plan(kinds=kinds, often=2.0)) for scenario in scenarios)
    outcomes = map(simulate, scenarios)
    return any(text in wrong for outcome in outcomes for wrong in outcome.wrong)


def test_an_acknowledgement_of_what_was_only_received_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = _CollectorLink._handle

    def hasty(link: _CollectorLink, event: Event) -> None:
        handle(link, event)
        if isinstance(event, BatchReceived) and link._session is not None:
            link._session.send(link._session.connection.acknowledge(event.handle, event.batch.seq))

    monkeypatch.setattr(_CollectorLink, "_handle", hasty)
    assert found("was acknowledged")


def test_an_acknowledgement_of_what_the_disk_did_not_take_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    recover = Committer._recover

    async def careless(committer: Committer, reason: str, group: list[Any]) -> None:
        for commit in group:
            commit.source.committed(commit, Outcome("stored", commit.batch.seq))
            commit.source.settle()
        await trio.sleep(1.0)  # the link is cut next
        await recover(committer, reason, [])

    monkeypatch.setattr(Committer, "_recover", careless)
    assert found("was acknowledged", kinds=("disk",))


def test_a_batch_stored_twice_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Writer, "_mark", lambda _writer, _key: None)
    assert found("behind")


def test_a_collector_that_lets_go_of_what_is_not_durable_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(endpoint: Endpoint, state: StreamState, batch: Any) -> None:
        publish(endpoint, state, batch)
        if state.upstream is not None:
            session, handle = state.upstream
            session.send(session.connection.acknowledge(handle, batch.seq))

    publish = Endpoint.publish
    monkeypatch.setattr(Endpoint, "publish", forgetful)
    assert found("was acknowledged")


def test_records_in_anothers_log_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = Collector.endpoint

    def mixed(collector: Collector, org: str) -> Endpoint:
        return endpoint(collector, "org-1")

    monkeypatch.setattr(Collector, "endpoint", mixed)
    assert found("org-1 has")


def test_a_credential_that_is_not_looked_at_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OrgTable, "authenticate", lambda table, _token: table.names()[-1])
    assert found("of impostors were acknowledged")


def test_a_budget_that_is_not_kept_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    init = CreditPool.__init__

    def generous(pool: CreditPool, budget_bytes: int, **settings: Any) -> None:
        init(pool, budget_bytes * 100, **settings)

    monkeypatch.setattr(CreditPool, "__init__", generous)
    assert found("its budget is")


def test_a_process_that_dies_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(committer: Committer, *args: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Committer, "_tell", faulty)
    assert found("died")


def test_a_fleet_that_does_not_come_back_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    keep = Connections._keep

    async def once(connections: Connections, name: str, address: str, scope: trio.CancelScope) -> None:
        if connections.counts.dialled < 2:
            await keep(connections, name, address, scope)

    monkeypatch.setattr(Connections, "_keep", once)
    assert found("not settled")
