"""Bounds of one exporter's transport session."""

from __future__ import annotations

from attrs import frozen


@frozen
class FlowLimits:
    """Reaching the bound of templates or domains ends the exporter's session; the others cost what is beyond them."""

    max_templates: int = 4096
    max_fields_per_template: int = 2048
    max_template_bytes: int = 512 << 10
    """Bytes of all template records that a session may hold."""
    max_domains: int = 1024
    max_values_per_message: int = 1 << 17
    """Values of all records of a message; 64 KiB hold more than half of it only by elements of length 0."""
    max_malformed_in_a_row: int = 0
    """Messages one behind the other of which no set could be read (RFC 7011, 9.1); 0: no bound."""
