"""Lines put together from literal text and cells, many records at a time, and those of several templates in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sapflow.flows.columns.variable import Octets
from sapflow.flows.formats.cells import PAD, ROW, Cells

Part: TypeAlias = "bytes | Cells"
MAX_BLOCK_BYTES = 512 << 10
"""Lines with their padding, put together at once; one line may be longer."""


def lines(parts: Sequence[Part], records: int, mark: bytes = b"") -> Iterator[bytes]:
    """A line for each record: literal text and cells in turn, and a mark at the end of each; in blocks."""
    if all(isinstance(part, bytes) or isinstance(part.characters, list) for part in parts):
        yield from _joined(parts, records, mark)
        return
    row = b"".join(bytes([PAD]) * part.width if isinstance(part, Cells) else part for part in parts) + mark
    if records * len(row) > MAX_BLOCK_BYTES and records > 1:
        # The widest cell may be one of few: halves are narrower.
        half = records // 2
        yield from lines(_part(parts, 0, half), half, mark)
        yield from lines(_part(parts, half, records), records - half, mark)
        return
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
    yield text.tobytes()


def in_order(blocks: Sequence[bytes], orders: Sequence[NDArray[np.int64]]) -> bytes:
    """The lines of several blocks, each marked with ROW, by their places."""
    every = [line for block in blocks for line in block.split(ROW)[:-1]]
    places = np.argsort(np.concatenate(orders), kind="stable")
    return b"".join([every[place] for place in places.tolist()])


def _joined(parts: Sequence[Part], records: int, mark: bytes) -> Iterator[bytes]:
    if records == 1:
        pieces = [bytes(part.characters[0]) if isinstance(part, Cells) else part for part in (*parts, mark)]
        # One record may be as long as all that is written at once: then it is not put together.
        yield from pieces if sum(map(len, pieces)) > MAX_BLOCK_BYTES else [b"".join(pieces)]
        return
    literals = [b"%b" if isinstance(part, Cells) else part.replace(b"%", b"%%") for part in [*parts, mark]]
    row = b"".join(literals)
    texts = [part.characters for part in parts if isinstance(part, Cells)]
    yield b"".join([row % values for values in zip(*texts, strict=True)]) if texts else row % () * records


def _part(parts: Sequence[Part], first: int, stop: int) -> list[Part]:
    return [part.part(first, stop) if isinstance(part, Cells) else part for part in parts]
