"""docs/many-gpus.md: its commands parse, and its `training` sections have valid keys of the libraries."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sam4mllm.cli.main import SUBCOMMANDS, parse
from sam4mllm.recipe.loading import load_recipe
from sam4mllm.recipe.validation import library_problems
from sam4mllm.recipe.yaml_text import read_yaml

PAGE = (Path(__file__).parent.parent / "docs" / "many-gpus.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if "sam4mllm" in line.split()]


@pytest.mark.parametrize("line", COMMANDS)
def test_each_command_parses_and_its_recipe_loads(line: str) -> None:
    words = shlex.split(line)
    options = parse(words[words.index("sam4mllm") + 1 :])
    if "recipe" in options:
        load_recipe(options.recipe, options.overrides)
    assert words[0] not in ("torchrun", "accelerate") or SUBCOMMANDS[options.subcommand].distributed


def test_every_distributed_subcommand_is_shown() -> None:
    distributed = {name for name, subcommand in SUBCOMMANDS.items() if subcommand.distributed}
    assert {words[words.index("sam4mllm") + 1] for words in map(str.split, COMMANDS)} == distributed | {"merge"}


@pytest.mark.parametrize("section", blocks("yaml"))
def test_each_training_section_is_valid(section: str) -> None:
    assert library_problems(read_yaml(section)) == []
