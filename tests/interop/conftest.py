"""Recordings of the session: begun when the first test asks for one, of all exporters that any chosen test needs."""

from __future__ import annotations

import pytest

from tests.interop.recordings import Recordings


@pytest.fixture(scope="session")
def recordings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    wanted = set()
    for item in request.session.items:
        is_skipped = any(mark.args[0] for mark in item.iter_markers("skipif"))
        if not is_skipped and hasattr(item, "callspec"):
            wanted.add(item.callspec.params.get("exporter"))
    made = Recordings(tmp_path_factory.mktemp("recordings"))
    made.begin(*wanted - {None})
    return made
