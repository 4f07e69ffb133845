"""The names of the files that subcommands write to the folders of runs, predictions and evaluations."""

from __future__ import annotations

from sam4mllm.utils.hub import ADAPTER_CONFIG, MODEL_CONFIG

# Run folders; see `run_folder.py`.
RECIPE = "recipe.yaml"
METHOD = "method.json"
VERSIONS = "versions.json"
CALIBRATION = "calibration.json"
LEAKAGE = "leakage.json"
TRAIN_LOG = "train_log.jsonl"

# The checkpoints in a run folder; see `checkpoints.py`.
TRAINER_STATE = "trainer_state.json"
VALIDATION = "validation.json"

# Batch jobs (`pipeline/job.py`), evaluations (`evaluation/results.py`) and the demo.
JOB = "job.json"
PREDICTIONS = "predictions.jsonl"
RESULTS = "results.json"
SCORES = "scores.json"

CHECKPOINT_FILES = (MODEL_CONFIG, ADAPTER_CONFIG)
"""A folder with one of these holds a checkpoint."""

JOB_FILES = (JOB, PREDICTIONS, RECIPE)
"""A folder with one of these holds a run or the predictions of one."""

WRITTEN_FILES = (
    *JOB_FILES,
    CALIBRATION,
    LEAKAGE,
    METHOD,
    RESULTS,
    SCORES,
    TRAIN_LOG,
    TRAINER_STATE,
    VALIDATION,
    VERSIONS,
)
"""The files that belong to their folder, so that no other output may have their names there."""
