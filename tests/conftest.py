"""What all tests share: properties have no deadline, since other work may hold a core for longer than any would be."""

from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings

settings.register_profile("sapflow", deadline=None)
settings.load_profile("sapflow")


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """A command run within a test sets where the log goes, but not for the tests after it: some count its lines."""
    yield
    structlog.reset_defaults()
