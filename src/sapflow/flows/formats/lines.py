"""Lines put together from literal text and cells, many records at a time, and those of several templates in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sapflow.flows.formats.cells import PAD, ROW, Cells
from sapflow.flows.variable import Octets

Part: TypeAlias = "bytes | Cells"
MAX_BLOCK_BYTES = 2 << 20
"""Lines with their padding, put together at once; one line may be longer."""


def lines(parts: Sequence[Part], records: int, mark: bytes = b"") -> bytes:
    """A line for each record: literal text and cells in turn, and a mark at the end of each."""
    if all(isinstance(part, bytes) or isinstance(part.characters, list) for part in parts):
        return _joined(parts, records, mark)
    row = b"".join(bytes([PAD]) * part.width if isinstance(part, Cells) else part for part in parts) + mark
    if records * len(row) > MAX_BLOCK_BYTES and records > 1:
        # The widest cell may be one of few: halves are narrower.
        half = records // 2
        return lines(_part(parts, 0, half), half, mark) + lines(_part(parts, half, records), records - half, mark)
    block = np.empty((records, len(row)), np.uint8)
    block[:] = np.frombuffer(row, np.uint8)
    at = 0
    for part in parts:
        if isinstance(part, Cells):
            width = part.width
            part.put(block[:, at : at + width])
            at += width
        else:
            at += len(part)
    # Twice as fast as bytes.translate: text stands in long runs.
    text: Octets = block[block != PAD]
    return text.tobytes()


def in_order(blocks: Sequence[bytes], orders: Sequence[NDArray[np.int64]]) -> bytes:
    """The lines of several blocks, each marked with ROW, by their places."""
    every = [line for block in blocks for line in block.split(ROW)[:-1]]
    places = np.argsort(np.concatenate(orders), kind="stable")
    return b"".join([every[place] for place in places.tolist()])


def _joined(parts: Sequence[Part], records: int, mark: bytes) -> bytes:
    literals = [b"%b" if isinstance(part, Cells) else part.replace(b"%", b"%%") for part in [*parts, mark]]
    row = b"".join(literals)
    texts = [part.characters for part in parts if isinstance(part, Cells)]
    return b"".join([row % values for values in zip(*texts, strict=True)]) if texts else row % () * records


def _part(parts: Sequence[Part], first: int, stop: int) -> list[Part]:
    return [part.part(first, stop) if isinstance(part, Cells) else part for part in parts]
