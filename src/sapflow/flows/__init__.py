"""Flow records, pure: no sockets, no clock, no tasks.

`captures` and `datagrams` bring them in, `ipfix` is what they are inside the fleet and in the log, `columns` what
programs work on, `meaning` what they say, `formats` how they go out. `registry` knows the information elements.
"""
