"""Limits of the host: reached without a crash, and recovered from."""

import resource
import socket
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path

from tools.fleet import Fleet, running

from sapflow.cli.fleet import read_fleet
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


def test_c19_without_file_descriptors_accepting_pauses_without_spinning_and_recovers(tmp_path: Path) -> None:
    with running(tmp_path, collectors=1) as fleet:
        balancer = fleet.processes()["balancer"]
        open_now = len(list(Path(f"/proc/{balancer}/fd").iterdir()))
        before = resource.prlimit(balancer, resource.RLIMIT_NOFILE, (open_now + 10, open_now + 1000))
        assert before[0] > open_now + 10
        host, port = fleet.doors["ipfix_tcp"].split(":")
        with ExitStack() as stack:
            for _ in range(40):
                stack.enter_context(socket.create_connection((host, int(port)), 10))
            used = cpu_seconds(balancer)
            time.sleep(2)
            assert cpu_seconds(balancer) - used < 1.0
        send(fleet.doors["ipfix_tcp"], reference_work(5))
        until = time.monotonic() + 30
        while stored(fleet) < 120 and time.monotonic() < until:
            time.sleep(0.1)
        assert stored(fleet) == 120
        assert "accept paused" in (tmp_path / "up.log").read_text()


def test_every_process_answers_prometheus_with_what_it_counted(tmp_path: Path) -> None:
    with running(tmp_path, collectors=1) as fleet:
        send(fleet.doors["ipfix_tcp"], reference_work(5))
        until = time.monotonic() + 30
        while stored(fleet) < 120 and time.monotonic() < until:
            time.sleep(0.1)
        texts = {}
        for url in read_fleet(str(fleet.data))["metrics"]:
            with urllib.request.urlopen(url, timeout=5) as answer:
                texts[url] = answer.read().decode()
    joined = "\n".join(texts.values())
    for line in (
        "sapflow_balancer_intake_records_total 120.0",
        "sapflow_collector_endpoint_records_in_total 120.0",
        "sapflow_phloem_commit_stored_records_total 120.0",
    ):
        assert line in joined
    assert all("_rss_bytes " in text for text in texts.values())
