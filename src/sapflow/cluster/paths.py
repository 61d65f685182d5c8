"""Where things are in ZooKeeper; pure.

    /sapflow/<fleet>/members/<name>   ephemeral: a Member as JSON
    /sapflow/<fleet>/loads/<name>     ephemeral: what that member last reported; one node per member, never one per org
    /sapflow/<fleet>/claims/<org>     ephemeral: its owner's name and generation as JSON
    /sapflow/<fleet>/pegs/<org>       the name of the one member that may claim the org, as text

Names are encoded so that no two are one node: percent-encoding, of the dot too ("." and ".." are no node names).
"""

from __future__ import annotations

from urllib.parse import quote, unquote

TOP = "/sapflow"
_EMPTY = "%"
"""Stands for the empty name: a `%` that two digits do not follow comes from nothing else."""


def encode(name: str) -> str:
    """A name as one node's name; different names give different nodes."""
    return quote(name, safe="", errors="surrogatepass").replace(".", "%2E") or _EMPTY


def decode(node: str) -> str | None:
    """The name that `encode` made this node's name of; None when it made none."""
    try:
        name = "" if node == _EMPTY else unquote(node, errors="surrogatepass")
        return name if encode(name) == node else None
    except UnicodeError:
        return None


class Paths:
    """The nodes of one fleet."""

    def __init__(self, fleet: str) -> None:
        self.root = f"{TOP}/{encode(fleet)}"
        self.members = f"{self.root}/members"
        self.loads = f"{self.root}/loads"
        self.claims = f"{self.root}/claims"
        self.pegs = f"{self.root}/pegs"

    def directories(self) -> tuple[str, ...]:
        """The fleet's own nodes that must be there before anything else, parents first."""
        return self.root, self.members, self.loads, self.claims, self.pegs

    def member(self, name: str) -> str:
        """A member's node."""
        return f"{self.members}/{encode(name)}"

    def load(self, name: str) -> str:
        """The node of a member's load."""
        return f"{self.loads}/{encode(name)}"

    def claim(self, org: str) -> str:
        """The node of the claim to an org."""
        return f"{self.claims}/{encode(org)}"

    def peg(self, org: str) -> str:
        """The node that pegs an org to a member."""
        return f"{self.pegs}/{encode(org)}"
