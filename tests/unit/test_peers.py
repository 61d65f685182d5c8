"""Peers as data: the pinned lists, their checks, and what to type to have one. Nothing is installed or started here."""

import hashlib
import struct
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tools.peers import PEERS, catalog, find, install_line, jars
from tools.peers.catalog import Compiled, Debian, Jars
from tools.peers.jars import Jar, faults, parse_pins
from tools.peers.kafka import broker_numbers
from tools.peers.server import free_port, is_free

JAVA_PEERS = [name for name, peer in PEERS.items() if isinstance(peer.source, Jars)]


def a_jar(artifact: str = "one", content: bytes = b"bytes") -> Jar:
    return Jar("org.example", artifact, "1.0", hashlib.sha256(content).hexdigest())


def a_pin(artifact: str = "one") -> str:
    jar = a_jar(artifact)
    return f"{jar.group}:{jar.artifact}:{jar.version} {jar.sha256}"


@pytest.mark.parametrize("name", JAVA_PEERS)
def test_every_pinned_list_is_read_and_its_first_jar_names_the_version(name: str) -> None:
    pins = jars.pins(name)
    assert len({jar.file_name for jar in pins}) == len(pins)
    assert pins[0].artifact.startswith(name)
    assert jars.place(name).parent.name == f"{name}-{pins[0].version}"


def test_a_list_is_read_past_comments_and_empty_lines() -> None:
    assert parse_pins(f"# why\n\n{a_pin()}\n{a_pin('two')}\n") == (a_jar(), a_jar("two"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "pins no jar"),
        ("# only a comment\n", "pins no jar"),
        (f"{a_pin()}\norg.example:two:1.0\n", "line 2"),
        (f"{a_pin()[:-1]}\n", "line 1"),
        (f"{a_pin().replace(':1.0', '')}\n", "line 1"),
        (f"{a_pin().replace('one', '../one')}\n", "line 1"),
        (f"{a_pin()}\n# again\n{a_pin()}\n", "line 3: org.example:one is there twice"),
    ],
)
def test_a_list_that_pins_nothing_half_or_twice_is_refused_with_its_line(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_pins(text)


def test_a_directory_of_exactly_the_pinned_bytes_has_no_faults(tmp_path: Path) -> None:
    (tmp_path / "one-1.0.jar").write_bytes(b"bytes")
    assert faults((a_jar(),), tmp_path) == []


def test_other_bytes_missing_jars_and_jars_that_nobody_pinned_are_faults(tmp_path: Path) -> None:
    (tmp_path / "one-1.0.jar").write_bytes(b"other bytes")
    (tmp_path / "three-1.0.jar").write_bytes(b"bytes")
    changed, missing, foreign = faults((a_jar(), a_jar("two")), tmp_path)
    assert changed.startswith("one-1.0.jar has sha256 ")
    assert missing == "two-1.0.jar is missing"
    assert foreign == "three-1.0.jar is not pinned"


def test_the_project_asks_maven_for_every_jar_and_names_no_repository(tmp_path: Path) -> None:
    project = ElementTree.fromstring(jars.project((a_jar(), a_jar("two")), tmp_path))
    space = {"m": "http://maven.apache.org/POM/4.0.0"}
    items = project.findall(".//m:artifactItem/m:artifactId", space)
    assert [item.text for item in items] == ["one", "two"]
    assert project.findtext(".//m:outputDirectory", namespaces=space) == str(tmp_path)
    assert project.find(".//m:repository", space) is None


def test_the_install_line_names_the_debian_package_where_that_is_enough() -> None:
    assert install_line("nfcapd") == "python -m tools.peers install nfcapd   (or: apt-get install nfdump)"
    assert install_line("kafka") == "python -m tools.peers install kafka"
    assert install_line("nfdump", "nfcapd").endswith("(or: apt-get install nfdump)")
    assert install_line("nfdump", "kafka") == "python -m tools.peers install nfdump kafka"


def test_programs_of_one_package_are_wanted_by_tests_together() -> None:
    wanted: dict[str, set[bool]] = {}
    for peer in PEERS.values():
        if isinstance(peer.source, Debian):
            wanted.setdefault(peer.source.package, set()).add(peer.for_tests)
    assert all(len(found) == 1 for found in wanted.values())


def test_a_java_peer_is_found_only_when_its_whole_directory_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jars, "DIRECTORY", tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: f"/somewhere/{name}")
    assert find("kafka") is None
    jars.place("kafka").mkdir(parents=True)
    assert find("kafka") == str(jars.place("kafka"))


def test_a_java_peer_is_not_found_without_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jars, "DIRECTORY", tmp_path)
    jars.place("kafka").mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find("kafka") is None


def test_a_free_port_is_one_that_no_outgoing_connection_is_given() -> None:
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    port = free_port()
    assert is_free(port)
    assert port < low


def test_the_brokers_of_a_metadata_answer_are_read_with_and_without_racks() -> None:
    def entry(number: int, rack: bytes | None) -> bytes:
        tail = struct.pack("!h", -1) if rack is None else struct.pack("!h", len(rack)) + rack
        return struct.pack("!ih", number, 9) + b"127.0.0.1" + struct.pack("!i", 9_092) + tail

    answer = (
        struct.pack("!ii", 7, 3) + entry(1, None) + entry(2, b"a rack") + entry(300, b"") + struct.pack("!hi", -1, 1)
    )
    assert broker_numbers(answer) == {1, 2, 300}


def test_a_compiled_peer_is_found_only_when_it_was_built_from_the_source_as_it_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "fixbuf_exporter.c"
    source.write_text("int main() { return 0; }")
    monkeypatch.setattr(catalog, "BIN", tmp_path / "bin")
    monkeypatch.setattr(Compiled, "path", lambda self, name: tmp_path / f"{name}.c")
    built = Compiled("any", ()).program("fixbuf_exporter")
    built.parent.mkdir()
    built.touch(mode=0o755)
    assert find("fixbuf_exporter") == str(built)
    source.write_text("int main() { return 1; }")
    assert find("fixbuf_exporter") is None
