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


def test_settings_that_were_removed_are_accepted_with_the_value_without_effect(small: Path) -> None:
    recipe = load_recipe(small)
    text = recipe.to_yaml()
    for section, removed in {
        "segmenter": ("fallback_margin: null", "fallback_outside: null", "kind: segment_anything"),
        "targets": ("only_winning: false",),
    }.items():
        text = text.replace(f"\n{section}:\n", f"\n{section}:\n" + "".join(f"  {line}\n" for line in removed))
    assert text.count("fallback_margin: null") == text.count("only_winning: false") == 1
    former = small.with_name("recipe.yaml")
    former.write_text(text, encoding="utf-8")
    assert load_recipe(former) == recipe and load_recipe(former).hash() == recipe.hash()
    assert load_recipe(former).to_yaml() == recipe.to_yaml()
    # Another value is refused in one line, beside which nothing is reported about the accepted ones.
    former.write_text(text.replace("fallback_margin: null", "fallback_margin: 0.05"), encoding="utf-8")
    (line,) = problems(former)
    assert line == (
        "segmenter.fallback_margin: was removed, so 0.05 has no effect; remove the key: masks are always those of box "
        "and points"
    )


@pytest.mark.parametrize("name", ["shape_ppg", "nowhere/shapes_pgp.yaml"])
def test_an_unknown_recipe_is_refused_with_the_nearest_shipped_one(name: str) -> None:
    (line,) = problems(name)
    assert line == "neither a recipe file nor the name of a shipped recipe; did you mean shapes_ppg?"
