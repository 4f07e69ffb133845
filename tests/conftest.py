"""Settings of all tests: hypothesis has no deadline, because durations on a busy machine are not behavior.

A shell starts background jobs with SIGINT ignored, and child processes inherit that. The tests of interruptions send
SIGINT, so it has Python's handler also where the tests run in the background.

Where several processes run the tests (pytest-xdist), each of them and its child processes compute in one thread.
"""

import os
import signal

from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("no_deadline", deadline=None)
# For `make mutation`, which runs the tests once for each of some thousand changes.
settings.register_profile("mutation", deadline=None, max_examples=10, derandomize=True, database=None)
settings.load_profile("no_deadline")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
