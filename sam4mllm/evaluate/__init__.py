"""Evaluation: predictions are scored against annotated masks. `sam4mllm.evaluate(...)` calls `evaluate.evaluate`."""

import sys

from sam4mllm import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
