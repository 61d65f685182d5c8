"""Tests against real peers skip, and say what to install, where one is missing; they fail where peers are required."""

from __future__ import annotations

import os

import pytest
from tools.peers import find, install_line


def needs(*names: str) -> pytest.MarkDecorator:
    """Skip, or fail under SAPFLOW_REQUIRE_PEERS=1, unless these are installed."""
    missing = [name for name in names if find(name) is None]
    if missing and os.environ.get("SAPFLOW_REQUIRE_PEERS") == "1":
        raise RuntimeError(f"peers are required, and {', '.join(missing)} is missing: {install_line(*missing)}")
    reason = f"needs {', '.join(missing)}: {install_line(*missing)}" if missing else ""
    return pytest.mark.skipif(bool(missing), reason=reason)


def needs_root(why: str) -> pytest.MarkDecorator:
    """Skip, or fail under SAPFLOW_REQUIRE_PEERS=1, for whoever is not root."""
    is_root = os.geteuid() == 0
    if not is_root and os.environ.get("SAPFLOW_REQUIRE_PEERS") == "1":
        raise RuntimeError(f"peers are required, and this needs root: {why}")
    return pytest.mark.skipif(not is_root, reason=f"needs root: {why}")


def slow(why: str) -> pytest.MarkDecorator:
    """Skip but under SAPFLOW_SLOW=1, as before a release: it takes a minute or more."""
    return pytest.mark.skipif(os.environ.get("SAPFLOW_SLOW") != "1", reason=f"slow, SAPFLOW_SLOW=1 runs it: {why}")
