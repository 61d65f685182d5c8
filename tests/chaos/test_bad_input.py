"""A fleet at work while something else than an exporter connects: seen in its status, and nobody's loss."""

import socket
import time
import urllib.request
from pathlib import Path

from tools.fleet import Fleet, running

from sapflow.cli.fleet_file import read_fleet
from sapflow.flows.ipfix.encode import make_message, make_set, make_template
from sapflow.flows.reference import reference_work

LOOSE = make_template(300, [(0, 82, 65_535)])
REFUSED = make_message(make_set(2, LOOSE.raw) + make_set(300, b"\x01a") + make_set(300, b"\x09"), domain=9)


def connect(fleet: Fleet) -> socket.socket:
    host, port = fleet.doors["ipfix_tcp"].split(":")
    return socket.create_connection((host, int(port)), 10)


def closed_within(connection: socket.socket, seconds: float) -> bool:
    connection.settimeout(seconds)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def test_what_cannot_be_read_is_in_the_status_by_reason_and_source_and_the_rest_is_stored(tmp_path: Path) -> None:
    with running(tmp_path, collectors=1) as fleet, connect(fleet) as exporter:
        exporter.sendall(reference_work(5) + REFUSED)
        for _ in range(4):
            with connect(fleet) as other:
                other.sendall(b"GET / HTTP/1.1\r\n\r\n")
                assert closed_within(other, 5)
        with connect(fleet) as turned_away:
            assert closed_within(turned_away, 5)
        # A session that was open before is not touched.
        exporter.sendall(reference_work(5, define=False, sequence=120))
        until = time.monotonic() + 30
        while time.monotonic() < until:
            status = fleet.status()
            if status["phloem-1"]["counts"]["commit"]["stored_records"] == 241:
                break
            time.sleep(0.1)
        assert status["phloem-1"]["counts"]["commit"]["stored_records"] == 241
        counts = status["balancer"]["counts"]
        assert counts["faults"]["record"] == 1
        assert counts["faults"]["version"] >= 3
        assert counts["exporter_door"]["shut_out"] >= 1
        assert counts["exporter_door"]["turned_away"] >= 1
        assert status["balancer"]["faulty_exporters"]["127.0.0.1"]["record"] == 1
        metrics = []
        for url in read_fleet(str(fleet.data))["metrics"]:
            with urllib.request.urlopen(url, timeout=5) as answer:
                metrics.append(answer.read().decode())
    assert "sapflow_balancer_faults_record_total 1.0" in "".join(metrics)
    log = (tmp_path / "up.log").read_text()
    assert "sets left out" in log
    assert "it looks like HTTP" in log
    assert log.count("source shut out") == counts["exporter_door"]["shut_out"]
