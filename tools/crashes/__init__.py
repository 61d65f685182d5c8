"""Crash states of the embedded log: its writes recorded, and replayed as a loss of power would leave them.

`workload` stores and says what it acknowledged, under strace; `record` makes that a list of events; `states` says which
files a crash may leave at each moment; `check` opens each, and looks for what was acknowledged.
"""
