"""The configuration: every fault named by file and key."""

import tomllib
from pathlib import Path

import pytest

from sapflow.config import Config, describe, dumps, from_dict, load
from sapflow.errors import ConfigurationError


def test_what_is_written_out_reads_back_the_same() -> None:
    assert from_dict(tomllib.loads(dumps(Config())), "x") == Config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[collector]\nbudgetbytes = 1",
            r"f.toml: collector.budgetbytes: no such setting; did you mean 'budget_bytes'",
        ),
        ("[collector]\nbudget_bytes = 'x'", "f.toml: collector.budget_bytes: expected an integer, got 'x'"),
        ("[intake]\nflush_interval_s = 0", "f.toml: intake.flush_interval_s: must be more than 0"),
        ("[phloem]\norg_share = 1.5", "f.toml: phloem.org_share: at most 1"),
        ("[phloem]\nbudget_bytes = 5", "f.toml: phloem.budget_bytes: at least"),
        ("[balancer]\nipfix_tls = '127.0.0.1:4740'", "f.toml: balancer.tls_certificate: balancer.ipfix_tls needs one"),
        ("[intake]\nbatch_bytes = 4194304", "f.toml: intake.batch_bytes: at most 1,048,576"),
        ("[balancer]\nbudget_bytes = 1000", "f.toml: balancer.budget_bytes: at least"),
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


def test_integers_are_taken_for_seconds() -> None:
    assert from_dict({"intake": {"flush_interval_s": 2}}, "x").intake.flush_interval_s == 2.0


def test_every_setting_is_described() -> None:
    found = {key: value for key, value, _ in describe(Config())}
    assert found["collector.budget_bytes"] == 256 << 20
