"""Real exporters, readers, stores and rivals that the tests and benchmarks run against.

python -m tools.peers list
python -m tools.peers install [--all] [NAME …]
python -m tools.peers start kafka|zookeeper

`catalog` says which there are, `jars` and `install` bring them, `kafka` and `zookeeper` run those that are servers.
"""

from tools.peers.catalog import PEERS, Peer, find, install_line

__all__ = ["PEERS", "Peer", "find", "install_line"]
