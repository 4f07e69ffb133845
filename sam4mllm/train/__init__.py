"""Training: a recipe becomes a run folder. `sam4mllm.train(recipe)` calls `trainer.train`."""

import sys

from sam4mllm import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
