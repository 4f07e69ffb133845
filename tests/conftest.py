"""Settings of all tests: hypothesis has no deadline, because durations on a busy machine are not behavior."""

from hypothesis import settings

settings.register_profile("no_deadline", deadline=None)
# For `make mutation`, which runs the tests once for each of some thousand changes.
settings.register_profile("mutation", deadline=None, max_examples=10, derandomize=True, database=None)
settings.load_profile("no_deadline")
