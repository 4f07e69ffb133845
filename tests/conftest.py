"""Settings of all tests: hypothesis has no deadline, because durations on a busy machine are not behavior."""

from hypothesis import settings

settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")
