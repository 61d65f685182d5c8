"""Bounded-load rendezvous hashing: which collector a key goes to, found alike by all who know the same collectors.

Pure. Each key ranks the collectors by a hash of both (Thaler and Ravishankar, 1998), and goes to the first in its
ranking that holds less than `balance` times the mean (Mirrokni, Thorup and Zadimoghaddam, 2018). What is in place is
never moved: only keys of a collector that is gone find another.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from hashlib import blake2b

BALANCE = 1.25


def place(key: bytes, collectors: Collection[str], counts: Mapping[str, int], *, balance: float = BALANCE) -> str:
    """The collector for one more key, where `counts` says how many keys each has now."""
    assert collectors
    total = sum(counts.get(name, 0) for name in collectors) + 1
    bound = math.ceil(balance * total / len(collectors))
    return next(name for name in ranked(key, collectors) if counts.get(name, 0) < bound)


def ranked(key: bytes, collectors: Collection[str]) -> Iterator[str]:
    """The collectors in the order that a key prefers them in."""
    return iter(sorted(collectors, key=lambda name: blake2b(name.encode(), key=key[:64], digest_size=8).digest()))
