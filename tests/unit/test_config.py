"""The configuration: every fault named by file and key."""

import tomllib
from pathlib import Path

import pytest

from sapflow import limits
from sapflow.config import Config, PegConfig
from sapflow.config_file import describe, dumps, from_dict, load
from sapflow.errors import ConfigurationError


def test_what_is_written_out_reads_back_the_same() -> None:
    assert from_dict(tomllib.loads(dumps(Config())), "x") == Config()


def test_a_file_of_all_defaults_is_one_that_a_fleet_starts_with(tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text(dumps(Config()))
    assert load(tmp_path / "f.toml") == Config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[collector]\nbudgetbytes = 1",
            r"f.toml: collector.budgetbytes: no such setting; did you mean 'budget_bytes'",
        ),
        ("[collector]\nbudget_bytes = 'x'", "f.toml: collector.budget_bytes: expected an integer, got 'x'"),
        ("[intake]\nflush_interval_s = 0", "f.toml: intake.flush_interval_s: must be more than 0"),
        ("[phloem]\nbacklog_rest = -1", "f.toml: phloem.backlog_rest: must be 0 or more than 0, is -1"),
        ("[phloem]\norg_share = 1.5", "f.toml: phloem.org_share: at most 1"),
        ("[phloem]\nbudget_bytes = 5", "f.toml: phloem.budget_bytes: at least"),
        ("[balancer]\nipfix_tls = '127.0.0.1:4740'", "f.toml: balancer.tls_certificate: balancer.ipfix_tls needs one"),
        ("[balancer]\nbudget_bytes = 1000", "f.toml: balancer.budget_bytes: at least"),
        ("[fleet]\nlease_s = nan", "f.toml: fleet.lease_s: must be a finite number, is nan"),
        ("[fleet]\nreport_interval_s = inf", "f.toml: fleet.report_interval_s: must be a finite number, is inf"),
        ("[fleet]\nreport_interval_s = 5", "f.toml: fleet.report_interval_s: at most fleet.lease_s, which is 3.0"),
        ("[phloem]\nmap_bytes = 4096", "f.toml: phloem.map_bytes: at least 16,777,216, is 4,096"),
        ("[phloem]\nmap_bytes = 9223372036854775807", "f.toml: phloem.map_bytes: at most"),
        ("[phloem]\ncommit_bytes = 1", "f.toml: phloem.commit_bytes: at least 65,536, is 1"),
        (
            "[phloem]\ncommit_bytes = 20000000\nbudget_bytes = 10000000",
            "f.toml: phloem.commit_bytes: at most phloem.budget_bytes, which is 10,000,000; is 20,000,000",
        ),
        ("[intake]\nbatch_bytes = 4194304", "f.toml: intake.batch_bytes: at most 524,288"),
        ("[intake]\nmax_unacknowledged_bytes = 1", "f.toml: intake.max_unacknowledged_bytes: at least"),
        ("collectors = 100000", "f.toml: collectors: at most 64, is 100,000"),
        (
            "[collector]\ntls_certificate = 'nowhere.pem'",
            "f.toml: collector.tls_certificate: nowhere.pem cannot be read: No such file or directory",
        ),
        ("[collector]\ntls_key = '/'", "f.toml: collector.tls_key: / cannot be read: Is a directory"),
        ("collectors = true", "f.toml: collectors: expected an integer, got True"),
        ("what", "f.toml: not TOML"),
        ("[balancer]\nlink = 'here'", r"f.toml: balancer.link: 'here' is not an address; write HOST:PORT"),
        (
            "[balancer]\nsources = [{prefix = '192.0.2.1/24', org = 'acme'}]",
            r"f.toml: balancer.sources, number 1: prefix: 192.0.2.1/24 has host bits set",
        ),
        (
            "[balancer]\nsources = [{prefix = '192.0.2.0/24', org = 'Acme'}]",
            "f.toml: balancer.sources, number 1: 'Acme' is no org's name",
        ),
        (
            "[fleet]\ncoordinator = '127.0.0.1:1'",
            r"f.toml: fleet.coordinator: 'local' or 'zookeeper'.*coordinator_address",
        ),
        ("[fleet]\ncoordinator = 'zookeeper'\nzookeeper = 'zk1'", "f.toml: fleet.zookeeper: HOST:PORT"),
        ("[fleet]\ncoordinator = 'zookeeper'\nzookeeper = 'zk1:2181,:1'", "f.toml: fleet.zookeeper: HOST:PORT"),
        ("[fleet]\ncoordinator = 'zookeeper'\nsession_timeout_s = 2", "fleet.session_timeout_s: at least three times"),
        ("[fleet]\npegs = [{ org = 'a' }]", "f.toml: fleet.pegs"),
        ("phloems = 2", r"f.toml: phloems: the embedded engine has exactly one Phloem node.* is 2.*engine = 'kafka'"),
        ("[phloem]\nengine = 'redis'", "f.toml: phloem.engine"),
        ("[phloem]\nengine = 'kafka'\nkafka = 'broker'", "f.toml: phloem.kafka: HOST:PORT"),
        (
            "[phloem]\nkafka_properties = { acks = '1' }",
            "f.toml: phloem.kafka_properties: acks: what may be set begins with security.",
        ),
    ],
)
def test_a_bad_file_is_answered_with_the_file_the_key_and_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        load(Path("f.toml"))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere.toml: cannot be read"):
        load(Path("nowhere.toml"))


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match=r"f.toml: not TOML: 'utf-8' codec can't decode"):
        load(tmp_path / "f.toml")


def test_integers_are_taken_for_seconds() -> None:
    assert from_dict({"intake": {"flush_interval_s": 2}}, "x").intake.flush_interval_s == 2.0


def test_every_setting_is_described() -> None:
    found = {key: value for key, value, _ in describe(Config())}
    assert found["collector.budget_bytes"] == 256 << 20


@pytest.mark.parametrize("name", ['a "b" \\c', "two\nlines", "\x00\x7f", "é — 流"])
def test_any_text_reads_back_the_same(name: str) -> None:
    config = Config(data=name, elements=(name, name))
    assert from_dict(tomllib.loads(dumps(config)), "x") == config


def test_a_fleet_on_zookeeper_with_pegs_reads_back_the_same() -> None:
    text = """
    [fleet]
    coordinator = "zookeeper"
    zookeeper = "zk1:2181, zk2:2181/flows"
    pegs = [{ org = "acme", member = "phloem-2" }]
    """
    config = from_dict(tomllib.loads(text), "x")
    assert config.fleet.pegs == (PegConfig("acme", "phloem-2"),)
    assert from_dict(tomllib.loads(dumps(config)), "x") == config


def test_a_fleet_on_kafka_reads_back_the_same() -> None:
    text = """
    phloems = 3
    [phloem]
    engine = "kafka"
    kafka = "k1:9092,k2:9092"
    kafka_properties = { "security.protocol" = "SSL", "ssl.ca.location" = "/etc/ca.pem" }
    """
    config = from_dict(tomllib.loads(text), "x")
    assert config.phloem.kafka_properties["security.protocol"] == "SSL"
    assert from_dict(tomllib.loads(dumps(config)), "x") == config


def test_all_that_cannot_be_is_named_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"x: collectors: .*; x: fleet.lease_s: .*; x: phloem.map_bytes: "):
        from_dict({"collectors": 0, "fleet": {"lease_s": -1}, "phloem": {"map_bytes": 1}}, "x")


def test_every_key_that_has_a_limit_is_a_setting_and_its_default_is_within() -> None:
    known = {key: value for key, value, _ in describe(Config())}
    assert {*limits.LEAST, *limits.MOST, *(key for pair in limits.NOT_MORE_THAN for key in pair)} <= set(known)
    assert not list(limits.faults(known))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ('name = "a.example", org = "acme"', "anybody can ask for a name"),
        ('name = "", org = "acme", sources = ["192.0.2.0/24"]', "no host name"),
        ('name = "a.example", org = "Ac me", sources = ["192.0.2.0/24"]', "no org's name"),
        ('name = "a.example", org = "acme", sources = ["192.0.2.7/24"]', "host bits"),
    ],
)
def test_a_tls_name_that_cannot_be_is_told(tmp_path: Path, name: str, why: str) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(f"[balancer]\ntls_names = [{{ {name} }}]\n")
    with pytest.raises(ConfigurationError, match=why):
        load(path)


def test_a_load_balancer_that_is_no_network_is_told(tmp_path: Path) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text('[collector]\nproxy_from = ["lb.example"]\n')
    with pytest.raises(ConfigurationError, match=r"collector\.proxy_from"):
        load(path)
