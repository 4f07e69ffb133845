"""The examples in the docstrings of the central objects: each has one, and it gives what it shows."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

EXAMPLES = (
    "sam4mllm.data.reading:read_dataset",
    "sam4mllm.data.sample:Sample",
    "sam4mllm.evaluation.evaluate:evaluate",
    "sam4mllm.evaluation.score:score",
    "sam4mllm.geometry:Grid",
    "sam4mllm.methods.ppg:Ppg.training_conversations",
    "sam4mllm.pipeline.pipeline:Pipeline.__call__",
    "sam4mllm.prompts.grammar:AnswerGrammar.parse",
    "sam4mllm.recipe.loading:load_recipe",
    "sam4mllm.training.prepare:prepare_targets",
)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_in_the_docstring_runs(name: str) -> None:
    module_name, _, path = name.partition(":")
    module = import_module(module_name)
    documented = module
    for part in path.split("."):
        documented = getattr(documented, part)
    finder = doctest.DocTestFinder(recurse=False)
    tests = [test for test in finder.find(documented, name, module=module) if test.examples]
    assert tests, f"{name} has no example in its docstring"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in tests:
        runner.run(test)
    assert runner.failures == 0, f"{runner.failures} of {runner.tries} lines of {name}'s example fail; see stdout"
