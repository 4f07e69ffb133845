"""The documentation site: links to files outside docs/, the page of recipes, and the pages in the navigation."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest
import yaml

from sam4mllm.data.entry import DataEntry
from sam4mllm.recipe.schema import MethodSection, ModelSection, ValidateSection
from tools.docs_site import PAGES, RECIPES, ROOT, SETTINGS, recipes_page, settings_page, site_links


@pytest.mark.parametrize(
    ("source", "link", "expected"),
    [
        ("README.md", "[method](docs/method.md)", "[method](method.md)"),
        ("README.md", "[results](docs/method.md#results)", "[results](method.md#results)"),
        ("README.md", "[paper](https://arxiv.org/abs/2409.10542)", "[paper](https://arxiv.org/abs/2409.10542)"),
        ("README.md", "[changes](CHANGELOG.md)", "[changes](changelog.md)"),
        ("README.md", "[sam4mllm/cli](sam4mllm/cli)", "`sam4mllm/cli`"),
        ("README.md", "[the demo's](recipes/shapes_ppg.yaml)", "[the demo's](recipes.md#shapes_ppg)"),
        ("README.md", "![demo](docs/demo.png)", "![demo](docs/demo.png)"),
        ("docs/faq.md", "[many GPUs](many-gpus.md#servers)", "[many GPUs](many-gpus.md#servers)"),
        ("docs/faq.md", "[above](#start)", "[above](#start)"),
        ("docs/glossary.md", "[`Box`](../sam4mllm/geometry.py)", "`Box` (`sam4mllm/geometry.py`)"),
        ("docs/faq.md", "[home](../README.md)", "[home](index.md)"),
    ],
)
def test_links_of_the_repository_hold_on_the_site(source: str, link: str, expected: str) -> None:
    assert site_links(f"See {link}.", PurePosixPath(source)) == f"See {expected}."


def test_a_link_to_a_missing_file_names_page_and_file() -> None:
    with pytest.raises(ValueError, match=r"docs/faq\.md: links to \.\./nothing\.py"):
        site_links("[x](../nothing.py)", PurePosixPath("docs/faq.md"))


def test_the_page_of_recipes_has_the_comment_and_the_settings_of_each_recipe() -> None:
    page = recipes_page()
    for path in (ROOT / "recipes").glob("*.yaml"):
        lines = path.read_text(encoding="utf-8").splitlines()
        section = page.partition(f"\n## {path.stem}\n")[2].partition("\n## ")[0]
        assert lines[0].removeprefix("# ") in section
        assert all(line in section for line in lines if line and not line.startswith("#"))


def test_the_page_of_settings_has_a_row_for_every_setting_of_a_recipe() -> None:
    page = settings_page()
    for section, fields in {
        "model": ModelSection.model_fields,
        "method": MethodSection.model_fields,
        "data.train, data.validation, data.guard": DataEntry.model_fields,
        "training.validate": ValidateSection.model_fields,
    }.items():
        table = page.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
        for key, field in fields.items():
            row = next(line for line in table.splitlines() if line.startswith(f"| `{key}` |"))
            assert row.count(" | ") == 3
            assert (field.description or "").split()[-1] in row
    assert "| `grid` | integer &ge; 2, &le; 10000 | `1000` |" in page
    assert "| `base` | string | required |" in page


def test_the_navigation_names_every_page() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    named = set(_pages(config["nav"]))
    written = {path.name for path in Path(ROOT / "docs").glob("*.md")}
    assert named == written | set(PAGES.values()) | {RECIPES, SETTINGS}


def _pages(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in _pages(part)]  # type: ignore[attr-defined]
