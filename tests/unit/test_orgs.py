"""The org table: hashes only, default deny, replaced as a whole."""

from pathlib import Path

import pytest

from sapflow.errors import ConfigurationError, StorageError
from sapflow.orgs import OrgTable


def test_a_token_names_its_org_and_nothing_else_does(tmp_path: Path) -> None:
    table = OrgTable(tmp_path / "orgs.json")
    table.add("acme")
    token = table.issue_token("acme")
    assert table.authenticate(token) == "acme"
    for wrong in ("", "acme", token[:-1], token + "x", token.upper(), "\ud800"):
        assert table.authenticate(wrong) is None


def test_s06_only_hashes_are_stored_and_only_their_owner_may_read_them(tmp_path: Path) -> None:
    path = tmp_path / "orgs.json"
    table = OrgTable(path)
    table.add("acme")
    assert table.issue_token("acme") not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


def test_another_process_sees_a_change_when_it_looks(tmp_path: Path) -> None:
    one, two = OrgTable(tmp_path / "orgs.json"), OrgTable(tmp_path / "orgs.json")
    one.add("acme")
    token = one.issue_token("acme")
    assert two.authenticate(token) is None
    assert two.reload_if_changed()
    assert two.authenticate(token) == "acme"
    assert one.revoke_tokens("acme") == 1
    assert two.reload_if_changed()
    assert two.authenticate(token) is None
    assert not two.reload_if_changed()


@pytest.mark.parametrize("name", ["", "Acme", "../x", "a/b", "a" * 64, ".a", "a b", "é", "*"])
def test_a_name_that_could_be_mistaken_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="no org's name"):
        OrgTable(tmp_path / "orgs.json").add(name)


def test_an_unknown_or_repeated_org_is_answered_with_what_to_do(tmp_path: Path) -> None:
    table = OrgTable(tmp_path / "orgs.json")
    with pytest.raises(ConfigurationError, match="sapflow orgs add acme"):
        table.issue_token("acme")
    table.add("acme")
    with pytest.raises(ConfigurationError, match="exists already"):
        table.add("acme")
    table.remove("acme")
    assert table.names() == []


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "orgs.json").write_text("{")
    with pytest.raises(StorageError, match=r"orgs.json cannot be read"):
        OrgTable(tmp_path / "orgs.json")
