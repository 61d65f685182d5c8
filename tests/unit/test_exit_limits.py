"""An exit's settings: everything that is wrong with them is said before anything starts."""

import tomllib
from pathlib import Path

import pytest

from phloem.exits.settings import producer_properties
from sapflow.config import Config
from sapflow.config_file import dumps, from_dict
from sapflow.errors import ConfigurationError, StorageError

NEEDED = {"name": '"lake"', "org": '"acme"', "brokers": '"k1:9092,k2:9092"', "topic": '"flows"'}


def an_exit(**settings: str) -> Config:
    table = "".join(f"{key} = {value}\n" for key, value in {**NEEDED, **settings}.items())
    return from_dict(tomllib.loads(f"[[phloem.exits]]\n{table}"), "f.toml")


def test_one_that_is_right_reads_back_the_same(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("x")
    config = an_exit(
        format='"arrow"',
        fields='["_position", "octetDeltaCount"]',
        properties='{ "security.protocol" = "SASL_SSL", "sasl.mechanism" = "SCRAM-SHA-512", "sasl.username" = "u" }',
        secrets=f'{{ "sasl.password" = "{password}" }}',
        timeout_s="5",
    )
    assert config.phloem.exits[0].timeout_s == 5.0
    assert from_dict(tomllib.loads(dumps(config)), "x") == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": '"Lake"'}, "f.toml: phloem.exits, number 1: name: 'Lake': lower-case letters"),
        ({"org": '"../b"'}, "number 1: org: '../b' is no org's name"),
        ({"brokers": '"k1"'}, "number 1: brokers: HOST:PORT, several with commas between, is 'k1'"),
        ({"topic": '"a/b"'}, "number 1: topic: 'a/b' is no topic's name"),
        ({"topic": '".."'}, "number 1: topic: '..' is no topic's name"),
        ({"format": '"csv"'}, "number 1: format: .*csv"),
        ({"window_bytes": "1"}, "number 1: window_bytes: from 65,536 to 268,435,456, is 1"),
        ({"max_message_bytes": "5000000"}, "max_message_bytes: at most window_bytes, which is 4,194,304; is 5,000,000"),
        ({"timeout_s": "nan"}, "number 1: timeout_s: from 1.0 to 3,600.0, is nan"),
        ({"colour": "1"}, "f.toml: phloem.exits, number 1: colour: no such setting; known here: name, org"),
        ({"fields": '["a", 1]'}, "phloem.exits, number 1: fields, number 2: expected a text in quotes, got 1"),
        (
            {"properties": '{ "sasl.kerberos.kinit.cmd" = "sh" }'},
            r"sasl.kerberos.kinit.cmd: what may be set is security",
        ),
        ({"properties": '{ "acks" = "0" }'}, "number 1: properties: acks: what may be set is"),
        (
            {"properties": '{ "security.protocol" = "TLS" }'},
            "security.protocol: PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL",
        ),
        ({"properties": '{ "sasl.password" = "x" }'}, r'is a secret: put it into a file and write secrets = \{ "sasl'),
        ({"properties": '{ "security.protocol" = "SASL_SSL" }'}, "SASL_SSL needs sasl.username; .*needs sasl.password"),
        ({"properties": '{ "sasl.username" = "u" }'}, "sasl.… has no effect without security.protocol SASL_SSL"),
        (
            {"secrets": '{ "sasl.username" = "/nowhere" }'},
            "secrets: sasl.username: what may stand in a file is sasl.pass",
        ),
    ],
)
def test_what_is_wrong_is_named(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        an_exit(**settings)


def test_a_file_that_cannot_be_read_now_keeps_no_process_from_starting() -> None:
    """The exit says so and waits; no other role needs it, nor another org's exit."""
    security = '{ "security.protocol" = "SASL_SSL", "sasl.mechanism" = "PLAIN", "sasl.username" = "u" }'
    made = an_exit(properties=security, secrets='{ "sasl.password" = "/nowhere" }')
    with pytest.raises(StorageError, match="/nowhere"):
        producer_properties(made.phloem.exits[0], alone=False)


def test_what_is_needed_and_not_there_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"x: phloem.exits, number 1: brokers: is needed; .*topic: is needed"):
        from_dict({"phloem": {"exits": [{"name": "lake", "org": "acme"}]}}, "x")


def test_two_exits_of_an_org_have_two_names_and_there_are_not_more_than_may_be() -> None:
    one = {key: tomllib.loads(f"x = {value}")["x"] for key, value in NEEDED.items()}
    with pytest.raises(ConfigurationError, match="org 'acme' has 2 exits named 'lake'"):
        from_dict({"phloem": {"exits": [one, one]}}, "x")
    many = [{**one, "name": f"e{number}"} for number in range(65)]
    with pytest.raises(ConfigurationError, match="at most 64 exits, are 65"):
        from_dict({"phloem": {"exits": many}}, "x")
