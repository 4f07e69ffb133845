"""The exceptions of sam4mllm. Each message says what was found, where, and what to do about it.

The command line prints the message of a `Sam4mllmError` as one line and exits with `exit_status`; any other exception
is a defect of ours and keeps its traceback.
"""


class Sam4mllmError(Exception):
    """Something that the user can mend; the message says how."""

    exit_status = 2


class RecipeError(Sam4mllmError):
    """A recipe that cannot be used: unknown keys, wrong types, values that contradict each other."""


class DataError(Sam4mllmError):
    """A data set, image or annotation that is not what its format promises."""


class PredictionsError(Sam4mllmError):
    """A file of predictions that cannot be scored: unknown ids, doubled ids, lines that are no JSON."""


class ModelError(Sam4mllmError):
    """A model, checkpoint, adapter or run folder that cannot be loaded."""


class ServerError(Sam4mllmError):
    """A server of a model that does not answer, or not us; nothing can be asked of it."""


class LaunchError(Sam4mllmError):
    """Processes of one job that were not started as asked, or of which one has stopped."""
