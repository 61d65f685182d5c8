"""IPFIX (RFC 7011), pure: framing, walking, templates, columns, encoding, output formats. No sockets, no clock."""
