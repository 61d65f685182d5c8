"""Exporters' datagrams into IPFIX: NetFlow v5 and v9, sFlow v5, IPFIX over UDP.

`session` is one exporter's; a file for each protocol translates; `parking` keeps what came before its template,
`reboots` tells when templates mean nothing any more, `clocks` makes a device's uptimes absolute.
"""
