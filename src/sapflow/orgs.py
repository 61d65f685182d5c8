"""The org table: customers and their credentials, in one file that only its owner may read.

Only hashes of tokens are stored. A token is random and long, so a plain SHA-256 is enough, and looking it up by its
hash takes the same time whether it is known or not.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from pathlib import Path

import structlog
import trio

from sapflow.errors import ConfigurationError, StorageError

log = structlog.get_logger()

ORG_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class OrgTable:
    """Orgs and the hashes of their tokens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._orgs: dict[str, list[str]] = {}
        self._by_hash: dict[str, str] = {}
        self._stamp: tuple[int, int, int] | None = None
        self.reload_if_changed()

    def reload_if_changed(self) -> bool:
        """Read the file again if it is another one than before. Raises StorageError."""
        try:
            status = self.path.stat()
            stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
            if stamp == self._stamp:
                return False
            found = json.loads(self.path.read_text())
            orgs = {str(org): [str(item) for item in hashes] for org, hashes in found["orgs"].items()}
        except FileNotFoundError:
            orgs, stamp = {}, None
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise StorageError(f"the org table {self.path} cannot be read: {error}") from error
        self._orgs, self._stamp = orgs, stamp
        self._by_hash = {item: org for org, hashes in orgs.items() for item in hashes}
        return True

    def names(self) -> list[str]:
        """All orgs."""
        return sorted(self._orgs)

    def tokens(self, org: str) -> int:
        """How many tokens an org has."""
        return len(self._orgs[org])

    def add(self, org: str) -> None:
        """A new org. Raises ConfigurationError when there is one, or the name is none."""
        if not ORG_NAME.fullmatch(org):
            raise ConfigurationError(
                f"'{org}' is no org's name: lower-case letters, digits, '.', '_' and '-', up to 63, a letter or "
                "digit first"
            )
        if org in self._orgs:
            raise ConfigurationError(f"org '{org}' exists already")
        self._save({**self._orgs, org: []})

    def remove(self, org: str) -> None:
        """Take away an org and its tokens; what is stored of it stays until its retention ends."""
        self._known(org)
        self._save({name: hashes for name, hashes in self._orgs.items() if name != org})

    def issue_token(self, org: str) -> str:
        """A new token for an org: shown once, stored as a hash."""
        self._known(org)
        token = f"sap_{secrets.token_urlsafe(32)}"
        self._save({**self._orgs, org: [*self._orgs[org], _hash(token)]})
        return token

    def revoke_tokens(self, org: str) -> int:
        """Take away all tokens of an org: how many there were."""
        self._known(org)
        count = len(self._orgs[org])
        self._save({**self._orgs, org: []})
        return count

    def authenticate(self, token: str) -> str | None:
        """The org that a token names."""
        return self._by_hash.get(_hash(token))

    def _known(self, org: str) -> None:
        if org not in self._orgs:
            raise ConfigurationError(f"no org '{org}'; add it with 'sapflow orgs add {org}'")

    def _save(self, orgs: dict[str, list[str]]) -> None:
        """Replace the file as a whole, durably."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = self.path.with_suffix(".new")
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                json.dump({"orgs": orgs}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.path)
            directory = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise StorageError(f"the org table {self.path} cannot be written: {error.strerror}") from error
        self.reload_if_changed()


async def keep_fresh(table: OrgTable, *, interval_s: float = 1.0) -> None:
    """Read the table again whenever its file changes; while it cannot be read, the last one holds."""
    failing = False
    while True:
        await trio.sleep(interval_s)
        try:
            table.reload_if_changed()
            failing = False
        except StorageError as error:
            if not failing:
                log.error("org table not read again", reason=str(error), meaning="the credentials known before hold")
            failing = True


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
