"""The exceptions of sam4mllm.

    Sam4mllmError            a problem that the user can fix; the message explains how
    ├── RecipeError          a recipe that cannot be used: unknown keys, wrong types, contradicting values
    ├── DataError            a data set, image or annotation that violates its format
    │   └── ArgumentError    an argument that selects data and is missing, invalid or contradicts another
    ├── PredictionsError     a file of predictions that cannot be scored: unknown ids, duplicate ids, invalid JSON
    ├── ModelError           a model, checkpoint, adapter or run folder that cannot be loaded
    ├── ServerError          a model server that does not respond, or rejects the requests
    ├── TrainingError        a training whose numbers are not finite any more
    ├── DeviceMemoryError    a device or machine with too little memory for even one item
    └── LaunchError          processes that were started wrongly: of one job, or a second job on the same folder

Each message reports what was found, where, and what to do. The command line prints the message of a `Sam4mllmError` as
one line and exits with `exit_status`; any other exception is a bug of sam4mllm and keeps its traceback.
"""


class Sam4mllmError(Exception):
    """A problem that the user can fix; the message explains how."""

    exit_status = 2


class RecipeError(Sam4mllmError):
    """A recipe that cannot be used: unknown keys, wrong types, contradicting values."""


class DataError(Sam4mllmError):
    """A data set, image or annotation that violates its format; `kind` is what is wrong, where that is known.

    The kinds are those that `sam4mllm check` counts: file, json, field, phrase, reference, duplicate, image, mask, box.
    """

    def __init__(self, message: str, kind: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind


class ArgumentError(DataError):
    """An argument that selects data and is missing, invalid or contradicts another; `argument` is its name."""

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(f"{argument}: {problem}")
        self.argument = argument
        self.problem = problem


class PredictionsError(Sam4mllmError):
    """A file of predictions that cannot be scored: unknown ids, duplicate ids, invalid JSON."""


class ModelError(Sam4mllmError):
    """A model, checkpoint, adapter or run folder that cannot be loaded."""


class ServerError(Sam4mllmError):
    """A model server that does not respond, or rejects the requests."""


class TrainingError(Sam4mllmError):
    """A training whose numbers are not finite any more."""


class DeviceMemoryError(Sam4mllmError):
    """A device or machine with too little memory for even one item."""


class LaunchError(Sam4mllmError):
    """Processes that were started wrongly, or one of which stopped; or a second job on the folder of another one."""
