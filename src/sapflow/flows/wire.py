"""The fixed structures of an IPFIX message (RFC 7011, 3)."""

from __future__ import annotations

import struct

VERSION = 10
MESSAGE_HEADER = struct.Struct("!HHIII")
"""version, length, export time (s), sequence number, observation domain."""
SET_HEADER = struct.Struct("!HH")
"""set id, length."""
MESSAGE_AND_SET = struct.Struct("!HHIIIHH")
"""Both at once: most messages hold one set."""
MAX_MESSAGE_BYTES = 65_535

TEMPLATE_SET = 2
OPTIONS_TEMPLATE_SET = 3
FIRST_DATA_SET = 256
VARIABLE_LENGTH = 65_535
