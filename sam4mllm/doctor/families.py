"""The families of multimodal LLMs, checked one by one on small random models of their real classes.

This module knows no single check; they stand in `family_checks.py`.
"""

from __future__ import annotations

import difflib
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from sam4mllm.doctor.family_checks import FAMILY_CHECKS
from sam4mllm.doctor.subject import Subject
from sam4mllm.doctor.verdict import NOT_APPLICABLE, Verdict, verdict_of
from sam4mllm.errors import ModelError
from sam4mllm.mllm.families import FAMILIES
from sam4mllm.testing.tiny_mllms import TINY_MLLMS
from sam4mllm.utils.progress import Advance, ignore


def chosen_families(only: Sequence[str]) -> tuple[list[str], bool]:
    """The model types that the words of `--only` mean (none: all), and whether the segmenters are meant as well.

    Raises:
        ModelError: a word that means nothing.
    """
    known = ["families", "segmenters", *FAMILIES]
    for word in only:
        if word not in known:
            near = difflib.get_close_matches(word, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"take one of {', '.join(known)}"
            raise ModelError(f"--only {word}: no such family; {hint}")
    if not only:
        return list(FAMILIES), True
    return [name for name in FAMILIES if name in only or "families" in only], "segmenters" in only


def check_families(
    model_types: Sequence[str] | None = None, *, device: str = "cpu", advance: Advance = ignore
) -> dict[str, dict[str, Verdict]]:
    """The verdict of each check for each of `model_types` (None: all of the table), in the table's order.

    `advance` is told of each check that is done.
    """
    chosen = [name for name in FAMILIES if model_types is None or name in model_types]
    with quiet():
        return {name: _check_family(name, device, advance) for name in chosen}


def _check_family(model_type: str, device: str, advance: Advance) -> dict[str, Verdict]:
    lacking = [package for package in FAMILIES[model_type].needs if find_spec(package) is None]
    if lacking:
        advance(len(FAMILY_CHECKS))
        return dict.fromkeys(
            FAMILY_CHECKS, f"{NOT_APPLICABLE}needs {', '.join(lacking)}: pip install {' '.join(lacking)}"
        )
    verdicts: dict[str, Verdict] = {}
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(model_type, Path(folder), device)
        built = verdict_of(lambda: _build(subject))
        for name, check in FAMILY_CHECKS.items():
            verdicts[name] = verdict_of(lambda check=check: check(subject)) if built is True else built  # type: ignore[misc]
            advance()
    return verdicts


def _build(subject: Subject) -> None:
    TINY_MLLMS[subject.model_type](Path(subject.base))


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' progress bars and warnings, which would bury the table."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
