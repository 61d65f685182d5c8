"""Bounds of one exporter's transport session."""

from __future__ import annotations

from attrs import frozen


@frozen
class FlowLimits:
    """Reaching one of these ends the exporter's session, with an error that names it."""

    max_templates: int = 4096
    max_fields_per_template: int = 2048
    max_template_bytes: int = 1 << 20
    """Bytes of all template records that a session may hold."""
    max_domains: int = 1024
