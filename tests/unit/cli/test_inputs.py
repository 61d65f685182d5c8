"""Files with ever so many exporters: each one's records, within bounds."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from sapflow.cli import contents, inputs
from sapflow.cli.inputs import Arrival, Decoder, opened
from sapflow.flows.ipfix.encode import make_message
from tests.unit.flows.test_datagrams import PORTS, define, ipfix, ports
from tests.unit.flows.test_netflow import v5, v5_record


def taken(decoder: Decoder, *arrivals: Arrival) -> list[tuple[str, int]]:
    """Of each batch whose it is, and how many records it has."""
    found = [(name, draft.records) for arrival in arrivals for name, draft in decoder.feed(arrival)]
    return found + [(name, draft.records) for name, draft in decoder.flush()]


def connection(exporter: str, *sets: bytes) -> Arrival:
    return Arrival(exporter, ipfix(define(PORTS), *sets), "ipfix", is_datagram=False, begins=True)


def datagram(exporter: str) -> Arrival:
    return Arrival(exporter, v5(v5_record()), "netflow5", is_datagram=True, time_s=1.0)


def test_what_came_before_an_exporter_connected_again_is_kept() -> None:
    decoder = Decoder(batch_bytes=1 << 20, tally=True)
    assert taken(decoder, connection("a", ports(1, 2, 3)), connection("a", ports(4))) == [("a", 3), ("a", 1)]
    assert [domain.records for domain in decoder.stats["a ipfix"].domains.values()] == [4]
    assert decoder.faults == []


def test_a_connection_that_ended_inside_a_message_is_told_though_another_followed() -> None:
    decoder = Decoder(batch_bytes=1 << 20)
    first = connection("a", ports(1))
    cut = Arrival("a", first.data[:-1], "ipfix", is_datagram=False, begins=True)
    assert taken(decoder, cut, connection("a", ports(4))) == [("a", 1)]
    assert ["inside a message" in fault for fault in decoder.faults] == [True]


def test_exporters_beyond_the_bound_make_room_for_others_and_lose_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_EXPORTERS", 3)
    decoder = Decoder(batch_bytes=1 << 20, tally=True)
    found = taken(decoder, *(datagram(f"192.0.2.{n}:1") for n in (1, 2, 3, 1, 4, 5)))
    assert dict(found) == {"192.0.2.2:1": 1, "192.0.2.3:1": 1, "192.0.2.1:1": 2, "192.0.2.4:1": 1, "192.0.2.5:1": 1}
    assert decoder.forgotten == 2
    assert list(decoder.stats) == [*(f"192.0.2.{n}:1 netflow5" for n in (1, 2, 3)), "others netflow5"]
    assert sum(domain.records for stats in decoder.stats.values() for domain in stats.domains.values()) == 6


def test_batches_that_are_not_full_are_bounded_over_all_exporters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_WAITING_BYTES", 1000)
    decoder = Decoder(batch_bytes=1 << 20)
    early = [name for n in range(20) for name, _ in decoder.feed(datagram(f"192.0.2.{n}:1"))]
    assert len(early) >= 10
    assert len(early) + len(list(decoder.flush())) == 20


def test_faults_and_domains_that_are_told_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_FAULTS", 5)
    monkeypatch.setattr(contents, "MAX_DOMAINS", 2)
    decoder = Decoder(batch_bytes=1 << 20, tally=True)
    cut = [Arrival(f"192.0.2.{n}:1", b"\0\x0a", "ipfix", is_datagram=True, time_s=1.0) for n in range(8)]
    many = b"".join(make_message(b"", domain=n) for n in range(4))
    taken(decoder, *cut, Arrival("a", many, "ipfix", is_datagram=False, begins=True))
    assert len(decoder.faults) == 6
    assert decoder.faults[-1] == "and 3 more"
    assert {domain: stats.messages for domain, stats in decoder.stats["a ipfix"].domains.items()} == {
        0: 1,
        1: 1,
        "others": 2,
    }


@pytest.mark.parametrize(("output", "shown"), [(None, False), (Path("records.parquet"), True)])
def test_a_file_has_a_progress_bar_unless_records_come_out_on_the_terminal(
    output: Path | None, shown: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(inputs, "Console", lambda *, stderr: Console(file=terminal, force_terminal=True))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    path = tmp_path / "flows.ipfix"
    path.write_bytes(bytes(1000))
    with opened(path, output=output) as file:
        assert file.read() == bytes(1000)
    assert ("100%" in terminal.getvalue()) is shown
