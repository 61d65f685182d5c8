"""Limits of the host: reached without a crash, and recovered from."""

import resource
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tools.fleet import Fleet, running

from sapflow.cli.fleet_file import read_fleet
from sapflow.flows.reference import reference_work


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def stored(fleet: Fleet) -> int:
    found: int = fleet.status()["phloem-1"]["counts"]["commit"]["stored_records"]
    return found


def send(address: str, work: bytes) -> None:
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), 10) as connection:
        connection.sendall(work)


def door_of(fleet: Fleet, name: str) -> str:
    """Where a process is connected to."""
    if name.startswith("collector"):
        until = time.monotonic() + 20
        while time.monotonic() < until:
            for member in fleet.status()["balancer"]["members"]:
                if member["name"] == name:
                    return str(member["addresses"]["link"])
        raise AssertionError(f"{name} is not a member")
    return fleet.doors["ipfix_tcp" if name == "balancer" else "consume"]


@pytest.mark.parametrize("name", ["balancer", "collector-1", "phloem-1"])
def test_c19_without_file_descriptors_accepting_pauses_without_spinning_and_recovers(tmp_path: Path, name: str) -> None:
    with running(tmp_path, collectors=1) as fleet:
        pid = fleet.processes()[name]
        host, port = door_of(fleet, name).split(":")
        open_now = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_now + 10, open_now + 1000))
        assert before[0] > open_now + 10
        with ExitStack() as stack:
            for _ in range(40):
                stack.enter_context(socket.create_connection((host, int(port)), 10))
            used = cpu_seconds(pid)
            time.sleep(2)
            assert cpu_seconds(pid) - used < 1.0
        send(fleet.doors["ipfix_tcp"], reference_work(5))
        until = time.monotonic() + 30
        while stored(fleet) < 120 and time.monotonic() < until:
            time.sleep(0.1)
        assert stored(fleet) == 120
        assert "accept paused" in (tmp_path / "up.log").read_text()


PLACES = {
    "balancer": {"exporters_tcp in", "exporters_udp in", "link in", "link out"},
    "collector": {"link in", "link out", "endpoint in", "endpoint out", "live out"},
    "phloem": {"link in", "channel in", "channel out", "engine in", "engine out"},
}
THROUGH = {
    "balancer": ("exporters_tcp in", "link in", "link out"),
    "collector": ("link in", "link out", "endpoint in", "endpoint out"),
    "phloem": ("link in", "channel in", "channel out", "engine in", "engine out"),
}
"""Where all that one exporter sent goes through once."""


def figures_of(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    for family in families:
        assert family.type in ("counter", "gauge")
        assert not family.name.endswith("_total")
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_every_process_answers_prometheus_with_what_went_through_each_of_its_places(tmp_path: Path) -> None:
    work = reference_work(5)
    records, messages = 120, 6
    with running(tmp_path, collectors=1) as fleet:
        send(fleet.doors["ipfix_tcp"], work)
        until = time.monotonic() + 20
        while stored(fleet) < records and time.monotonic() < until:
            time.sleep(0.1)
        words = ("tail", "default", "--at", "earliest", "--no-follow", "--data", str(fleet.data))
        subprocess.run([sys.executable, "-m", "sapflow", *words], check=True, capture_output=True, timeout=60)
        for url in read_fleet(str(fleet.data))["metrics"]:
            found = figures_of(url)
            role = next(iter(found)).split("_")[1]
            for place in PLACES[role]:
                name, way = place.split()
                for unit in ("bytes", "messages", "records"):
                    value = found[f"sapflow_{role}_{name}_{way}_{unit}_total"]
                    if place in THROUGH[role] and unit != "bytes":
                        assert value == {"messages": messages, "records": records}[unit], (role, place, unit)
            assert found[f"sapflow_{role}_out_in_ratio_measured"] == found[f"sapflow_{role}_out_in_ratio_expected"] == 1
            assert found[f"sapflow_{role}_rss_bytes"] > 1 << 20
            assert found[f"sapflow_{role}_cpu_seconds_total"] > 0
            assert found[f"sapflow_{role}_lag_seconds"] >= 0
