"""For all tests: how long one takes is no behaviour, so on a busy machine none fails for it."""

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
