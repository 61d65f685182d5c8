"""`decode --view`, `--scaled`, `--names`, `--elements`: what stands beside and in place of records."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sapflow.cli import cli
from sapflow.cli.elements import registry_of
from sapflow.config import Config
from sapflow.config_file import load
from sapflow.errors import ConfigurationError
from sapflow.flows.ipfix.encode import Encoder, make_template, make_variable
from sapflow.flows.registry import DATA_TYPES, built_in, registry
from sapflow.flows.wire import VARIABLE_LENGTH
from tests.unit.flows.flows_made import messages

HEADER = "pen,id,name,type,semantics,units,status\n"
ACME = 32473


def decode(path: Path, *arguments: object) -> Result:
    return CliRunner().invoke(cli, ["decode", str(path), *map(str, arguments)])


def rows(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def flows(tmp_path: Path) -> Path:
    """Flows, and only behind them what their exporter says of sampling and interfaces."""
    path = tmp_path / "flows.ipfix"
    path.write_bytes(
        messages({"sourceIPv4Address": "192.0.2.1", "octetDeltaCount": 10, "ingressInterface": 7})
        + messages({"lineCardId": 1, "samplingInterval": 100}, scopes=1, template=301)
        + messages({"ingressInterface": 7, "interfaceName": "eth0"}, scopes=1, template=302)
    )
    return path


def test_the_view_has_flows_under_common_names_and_no_options_data(flows: Path) -> None:
    (row,) = rows(decode(flows, "--view", "flow"))
    assert (row["src_addr"], row["bytes"], row["sampling"], row["in_if"]) == ("192.0.2.1", 10, 100.0, 7)
    assert row["dst_addr"] is None
    assert "scaled_bytes" not in row


def test_scaled_counters_and_names_stand_in_the_view_when_asked_for(flows: Path) -> None:
    (row,) = rows(decode(flows, "--view", "flow", "--scaled", "--names"))
    assert (row["bytes"], row["scaled_bytes"], row["in_if_name"]) == (10, 1000, "eth0")


def test_and_beside_plain_records(flows: Path) -> None:
    row = rows(decode(flows, "--scaled", "--names"))[0]
    assert row["octetDeltaCount"] == 10
    assert row["scaledOctetDeltaCount"] == 1000
    assert row["ingressInterfaceName"] == "eth0"
    assert "scaledOctetDeltaCount" not in rows(decode(flows))[0]


def test_csv_of_the_view_has_its_columns(flows: Path) -> None:
    result = decode(flows, "--view", "flow", "--format", "csv", "--fields", "src_addr,bytes,start")
    assert result.stdout.splitlines() == ["src_addr,bytes,start", "192.0.2.1,10,"]


def test_records_that_are_not_scaled_are_told_on_standard_error(tmp_path: Path) -> None:
    path = tmp_path / "flows.ipfix"
    path.write_bytes(messages({"octetDeltaCount": 10}))
    result = decode(path, "--scaled")
    assert rows(result)[0]["scaledOctetDeltaCount"] is None
    assert "1 records have no sampling rate that their exporter told, and are not scaled" in result.stderr
    assert not decode(path, "--view", "flow").stderr


def test_ipfix_output_is_of_records_as_they_were(flows: Path) -> None:
    result = decode(flows, "--view", "flow", "--format", "ipfix")
    assert isinstance(result.exception, ConfigurationError)


OWN = make_template(300, [(ACME, 5, 4)])


def own_records(*, described: bool = False, kind: str = "unsigned32") -> bytes:
    """Records of an enterprise's element, and if wanted what it is, behind them."""
    encoder = Encoder()
    data = encoder.templates([OWN], export_time=1) + encoder.records(OWN, [b"\0\0\1\0"], export_time=1)
    if described:
        about = make_template(400, [(0, 346, 4), (0, 303, 2), (0, 339, 1), (0, 341, VARIABLE_LENGTH)], scopes=2)
        record = struct.pack("!IHB", ACME, 5, DATA_TYPES.index(kind)) + make_variable(b"acmeRoundTripTime")
        data += encoder.templates([about], export_time=1) + encoder.records(about, [record], export_time=1)
    return data


def test_a_user_s_elements_have_their_names_and_types(tmp_path: Path) -> None:
    path, mine = tmp_path / "flows.ipfix", tmp_path / "mine.csv"
    path.write_bytes(own_records())
    mine.write_text(f"{HEADER}{ACME},5,acmeRoundTripTime,unsigned32,,,\n")
    assert rows(decode(path))[0]["e32473id5"] == "00000100"
    assert rows(decode(path, "--elements", mine))[0]["acmeRoundTripTime"] == 256
    (template,) = rows(decode(path, "--elements", mine, "--templates"))
    assert template["fields"] == [{"name": "acmeRoundTripTime", "length": 4}]
    assert registry() is built_in()


def test_elements_of_the_configuration_are_read_from_its_directory(tmp_path: Path) -> None:
    path, config = tmp_path / "flows.ipfix", tmp_path / "sapflow.toml"
    path.write_bytes(own_records())
    (tmp_path / "mine.csv").write_text(f"{HEADER}{ACME},5,acmeRoundTripTime,unsigned32,,,\n")
    config.write_text('elements = ["mine.csv"]\n')
    assert load(config).elements == (str(tmp_path / "mine.csv"),)
    assert rows(decode(path, "--config", config))[0]["acmeRoundTripTime"] == 256


def test_a_broken_file_of_elements_is_named_with_line_and_fault(tmp_path: Path) -> None:
    path, mine = tmp_path / "flows.ipfix", tmp_path / "mine.csv"
    path.write_bytes(own_records())
    mine.write_text(f"{HEADER}{ACME},5,acme,number,,,\n")
    assert f"{mine}, line 2: no data type 'number'" in str(decode(path, "--elements", mine).exception)
    assert "no elements are read from it" in str(decode(path, "--elements", tmp_path / "none.csv").exception)


def test_two_files_that_say_otherwise_of_an_element_are_both_named(tmp_path: Path) -> None:
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    one.write_text(f"{HEADER}{ACME},5,acmeTime,unsigned32,,,\n")
    other.write_text(f"{HEADER}{ACME},5,acmeTime,string,,,\n")
    with pytest.raises(ConfigurationError, match=r"other.csv: element 5 .* acmeTime, unsigned32, in .*one.csv"):
        registry_of(Config(), [one, other])
    assert (ACME, 5) in registry_of(Config(elements=(str(one),)), [one])


def test_elements_that_an_exporter_describes_have_names_in_all_that_came_with_it(tmp_path: Path) -> None:
    path = tmp_path / "flows.ipfix"
    path.write_bytes(own_records(described=True))
    assert rows(decode(path))[0]["acmeRoundTripTime"] == 256


def test_a_user_s_word_on_an_element_counts_more_than_an_exporter_s(tmp_path: Path) -> None:
    path, mine = tmp_path / "flows.ipfix", tmp_path / "mine.csv"
    path.write_bytes(own_records(described=True, kind="ipv4Address"))
    mine.write_text(f"{HEADER}{ACME},5,myTime,unsigned32,,,\n")
    assert rows(decode(path, "--elements", mine))[0]["myTime"] == 256
