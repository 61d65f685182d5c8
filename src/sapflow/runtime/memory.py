"""How the C library keeps memory that threads gave back."""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8
"""`mallopt`'s, of glibc."""
ARENAS = 2
"""The main thread's, and one for all others. By default each thread has one, up to eight for each core, and what a
thread frees stays in its own: librdkafka's threads, some five for each client, held 15 MiB more after a broker came
back."""


def keep_few_arenas() -> None:
    """Before any thread is started. Where the C library knows no arenas nothing is done."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, ARENAS)
