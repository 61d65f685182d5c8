"""What all tests share: properties have no deadline, since other work may hold a core for longer than any would be."""

from hypothesis import settings

settings.register_profile("sapflow", deadline=None)
settings.load_profile("sapflow")
