"""IPFIX itself (RFC 7011): framing, one exporter's session of messages and templates, lists (RFC 6313), an encoder.

`framing` finds messages in bytes, `session` walks them (`messages` reads one, `mending` cuts out what cannot be read),
`templates` parses what defines records (`shapes` are their fields), `structured` decodes values and lists, `sequences`
tells loss.
"""
