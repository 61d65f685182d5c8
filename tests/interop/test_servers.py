"""Real servers as the other tests use them: they answer when they are said to be ready, and outlive a kill -9."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tools.peers import kafka, zookeeper
from tools.peers.server import HOST, Server, ServerFailed, free_port

from tests.peers import needs

TOPICS = "org.apache.kafka.tools.TopicCommand"


def is_refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) != 0


def topics(server: Server, *arguments: str) -> str:
    return kafka.command(TOPICS, "--bootstrap-server", server.address, *arguments)


def create(server: Server, topic: str) -> None:
    topics(server, "--create", "--topic", topic, "--partitions", "1")


@needs("kafka")
def test_a_broker_killed_comes_back_on_its_port_with_its_topics(tmp_path: Path) -> None:
    with kafka.broker(tmp_path) as server:
        create(server, "kept")
        killed = server.pid
        server.kill()
        assert is_refused(server.port)
        server.start()
        assert server.pid != killed
        assert kafka.alive(server.port) == {1}
        assert topics(server, "--list").split() == ["kept"]
    assert is_refused(server.port)


@needs("kafka")
def test_a_broker_keeps_its_data_where_it_is_told_and_takes_other_properties(tmp_path: Path) -> None:
    with kafka.broker(tmp_path / "a", log_dir=tmp_path / "data", properties={"num.partitions": "3"}) as server:
        topics(server, "--create", "--topic", "three")
        assert "PartitionCount: 3" in topics(server, "--describe", "--topic", "three")
    assert (tmp_path / "data" / "three-2").is_dir()


@needs("kafka")
def test_two_brokers_of_three_go_on_when_one_is_killed_and_it_joins_them_again(tmp_path: Path) -> None:
    with kafka.cluster(tmp_path, brokers=3) as servers:
        create(servers[0], "kept")
        servers[2].kill()
        assert "ReplicationFactor: 3" in topics(servers[0], "--describe", "--topic", "kept")
        servers[2].start()
        assert 3 in kafka.alive(servers[2].port)


@needs("zookeeper")
def test_a_zookeeper_killed_comes_back_on_its_port(tmp_path: Path) -> None:
    with zookeeper.server(tmp_path) as server:
        assert zookeeper.four_letters(server.port, "ruok") == b"imok"
        server.kill()
        assert is_refused(server.port)
        server.start()
        assert b"Mode: standalone" in zookeeper.four_letters(server.port, "srvr")


@needs("zookeeper")
def test_a_paused_server_takes_connections_and_answers_only_when_it_is_resumed(tmp_path: Path) -> None:
    with zookeeper.server(tmp_path) as server:
        server.pause()
        with socket.create_connection((HOST, server.port), 0.3) as connection:
            connection.sendall(b"ruok")
            with pytest.raises(TimeoutError):
                connection.recv(4)
            server.resume()
            connection.settimeout(10)
            assert connection.recv(4) == b"imok"


@needs("zookeeper")
def test_a_paused_server_is_stopped_and_killed_like_any_other(tmp_path: Path) -> None:
    with zookeeper.server(tmp_path) as server:
        server.pause()
        server.kill()
        assert is_refused(server.port)
        server.start()
        server.pause()
    assert not server.is_running


@needs("zookeeper")
def test_a_server_that_ends_at_once_is_reported_with_what_it_logged(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerFailed, match=r"(?s)ended before it answered.*NumberFormatException"),
        zookeeper.server(tmp_path, properties={"tickTime": "none"}),
    ):
        pass


@needs("zookeeper")
def test_a_port_that_another_process_has_is_reported_before_anything_starts(tmp_path: Path) -> None:
    with (
        socket.create_server((HOST, free_port())) as taken,
        pytest.raises(ServerFailed, match="another process has"),
        zookeeper.server(tmp_path, port=taken.getsockname()[1]),
    ):
        pass


@needs("zookeeper")
def test_the_command_prints_where_its_server_is_and_stops_it_when_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.peers", "start", "zookeeper", "--json", "--directory", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        port = int(ready["address"].rpartition(":")[2])
        assert zookeeper.four_letters(port, "ruok") == b"imok"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert is_refused(port)
    with pytest.raises(ProcessLookupError):
        os.kill(ready["pid"], 0)
