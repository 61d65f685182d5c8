"""What a node loads is what it takes before it does anything: 15 MiB more with numpy and kazoo."""

import subprocess
import sys

LOADED = """
import sys
from importlib import import_module
import sapflow.cli.roles, phloem.node, phloem.engine.kafka.log
from sapflow.cli.spare import modules
from sapflow.config import Config
for module in modules(Config()):
    import_module(module)
print(*sorted({name.partition(".")[0] for name in sys.modules} & {"numpy", "pyarrow", "kazoo"}))
"""


def test_a_node_that_was_a_spare_too_loads_nothing_that_only_who_decodes_or_has_a_zookeeper_needs() -> None:
    found = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, check=True, text=True)
    assert found.stdout.split() == []
