"""Runs of numbers, many at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Offsets = NDArray[np.intp]


def ranges(firsts: Offsets, counts: Offsets, steps: Offsets | None = None) -> Offsets:
    """`counts[i]` numbers from `firsts[i]` on, `steps[i]` apart (or one), joined; shape (sum of counts,)."""
    before = np.cumsum(counts) - counts
    within = np.arange(counts.sum())
    if steps is None:
        return np.repeat(firsts - before, counts) + within
    within -= np.repeat(before, counts)
    within *= np.repeat(steps, counts)
    within += np.repeat(firsts, counts)
    return within
