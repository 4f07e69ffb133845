"""Recipe files: where they are found, and which are refused."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from sam4mllm.recipe.loading import load_recipe, shipped_recipes
from tests.recipe.conftest import SMALL, problems


def test_an_installed_package_finds_its_recipes_inside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inside = tmp_path / "site" / "sam4mllm" / "recipes"
    inside.mkdir(parents=True)
    (inside / "small.yaml").write_text(SMALL, encoding="utf-8")
    monkeypatch.setattr(resources, "files", lambda package: inside.parent)
    assert list(shipped_recipes()) == ["small"]
    assert load_recipe("small").output == Path("runs/small")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"- a\n", "a recipe is a mapping of sections; got list"),
        (b"", "a recipe is a mapping of sections; got NoneType"),
        (b"seed: 1\nseed: 2\n", "is not valid YAML: line 2, column 1: duplicate key 'seed'"),
        (b"seed: [1\n", "is not valid YAML: line 2"),
        (b"\xff\xfe", "cannot be read as UTF-8 text"),
    ],
)
def test_an_invalid_recipe_file_is_refused_in_one_line(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(text)
    (line,) = problems(path)
    assert line.startswith(message)


@pytest.mark.parametrize("name", ["shape_ppg", "nowhere/shapes_pgp.yaml"])
def test_an_unknown_recipe_is_refused_with_the_nearest_shipped_one(name: str) -> None:
    (line,) = problems(name)
    assert line == "neither a recipe file nor the name of a shipped recipe; did you mean shapes_ppg?"
