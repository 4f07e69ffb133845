"""Hooks of the documentation site (mkdocs.yml): pages made from files outside docs/, and links to such files.

The start page is the README and the page of changes is the CHANGELOG, so neither is written twice. The page of recipes
holds the comment with which each recipe begins, the page of settings the fields of the recipe's schema. A link from a
page to a file of the repository that is no page becomes the file's path, because the site does not contain the file; a
path that does not exist is an error.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
"""The repository's files that are pages, with the pages' names."""

RECIPES = "recipes.md"
SETTINGS = "recipe-settings.md"

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)#\s]+)(#[^)\s]*)?\)")
_IMAGE = re.compile(r"(!\[[^\]]*\]\()docs/")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made from files outside docs/; called by MkDocs."""
    from mkdocs.structure.files import File

    for source, page in PAGES.items():
        content = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_IMAGE.sub(r"\1", content)))
    files.append(File.generated(config, RECIPES, content=recipes_page()))
    files.append(File.generated(config, SETTINGS, content=settings_page()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return a page's text with its links rewritten for the site; called by MkDocs."""
    sources = {made: source for source, made in PAGES.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    return site_links(markdown, PurePosixPath(source))


def site_links(markdown: str, source: PurePosixPath) -> str:
    """Return the text of the file `source`, relative to the repository, with links that hold on the site.

    Links to pages are relative to the site. Other links into the repository become the path of their file.

    Raises:
        ValueError: A linked file does not exist.
    """

    def rewrite(link: re.Match[str]) -> str:
        text, target, anchor = link.group(1), link.group(2), link.group(3) or ""
        path = os.path.normpath(source.parent / target)
        if path in PAGES:
            return f"[{text}]({PAGES[path]}{anchor})"
        if path.startswith("docs/"):
            # A page that does not exist is found by MkDocs.
            return f"[{text}]({path.removeprefix('docs/')}{anchor})"
        if path.startswith("recipes/") and path.endswith(".yaml"):
            return f"[{text}]({RECIPES}#{PurePosixPath(path).stem})"
        if not (ROOT / path).exists():
            raise ValueError(f"{source}: links to {target}, which does not exist")
        return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"

    return _LINK.sub(rewrite, markdown)


def recipes_page() -> str:
    """Return the page of recipes: for each one the comment with which it begins, and its settings."""
    parts = [
        "# Recipes\n\nEach recipe is given by its name, as in `sam4mllm train shapes_ppg`. What a key means, and its "
        "default: [recipe settings](recipe-settings.md).\n"
    ]
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        count = next(index for index, line in enumerate(lines) if not line.startswith("#"))
        title, *comment = [line.removeprefix("#").removeprefix(" ") for line in lines[:count]]
        settings = "\n".join(lines[count:]).strip()
        parts.append(
            f"## {path.stem}\n\n{title}\n\n```text\n"
            + "\n".join(comment).strip("\n")
            + f"\n```\n\n```yaml\n{settings}\n```\n"
        )
    return "\n".join(parts)


def settings_page() -> str:
    """Return the page of recipe settings: a table of key, type, default and meaning for each section of a recipe."""
    from sam4mllm.recipe.schema import Recipe

    schema = Recipe.model_json_schema(by_alias=True)
    sections = {"": schema, **{name: schema["$defs"][name] for name in _sections(schema["properties"])}}
    keys = {name: key for key, each in schema["properties"].items() for name in _references(each)}
    keys |= {"DataEntry": "data.train, data.validation, data.guard", "ValidateSection": "training.validate"}
    parts = [
        "# Recipe settings\n\n`sam4mllm train RECIPE key=value` overrides a setting, for example "
        "`training.learning_rate=5e-5`. An unknown key is an error that names the closest valid one. The sections "
        "`lora` and `training` also take all keys of peft's `LoraConfig` and of transformers' `TrainingArguments`.\n"
    ]
    nested = [name for section in list(sections.values()) for name in _sections(section.get("properties", {}))]
    for name in dict.fromkeys([*sections, *nested]):
        section = sections.get(name) or schema["$defs"][name]
        heading = f"## {keys[name]}\n\n{_line(section.get('description', ''))}\n\n" if name else "## A recipe\n\n"
        required = section.get("required", [])
        rows = [
            _setting_row(key, each, key in required, schema["$defs"]) for key, each in section["properties"].items()
        ]
        parts.append(f"{heading}| key | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _setting_row(key: str, setting: dict[str, Any], required: bool, sections: dict[str, Any]) -> str:
    default = setting.get("default")
    described = setting if "description" in setting else sections.get("".join(_references(setting)), {})
    is_section = bool(_references(setting)) or "default" not in setting
    shown = "required" if required else "" if is_section else f"`{json.dumps(default)}`"
    return f"| `{key}` | {_type(setting)} | {shown} | {_line(described.get('description', ''))} |"


def _type(setting: dict[str, Any]) -> str:
    """Return the type of a setting as JSON schema has it, in one short text."""
    if "enum" in setting:
        return ", ".join(f"`{each}`" for each in setting["enum"])
    if "const" in setting:
        return f"`{setting['const']}`"
    if "anyOf" in setting:
        return " or ".join(_type(each) for each in setting["anyOf"])
    if "$ref" in setting:
        return "section"
    if setting.get("type") == "array":
        return f"list of {_type(setting['items'])}"
    bounds = [
        f"{sign} {setting[name]}"
        for name, sign in (
            ("minimum", "&ge;"),
            ("exclusiveMinimum", "&gt;"),
            ("maximum", "&le;"),
            ("exclusiveMaximum", "&lt;"),
        )
        if name in setting
    ]
    return " ".join([setting.get("type", "any"), ", ".join(bounds)]).strip()


def _references(setting: Any) -> list[str]:
    """Return the names of the sections that a part of a JSON schema refers to."""
    if isinstance(setting, dict):
        own = [setting["$ref"].rpartition("/")[2]] if "$ref" in setting else []
        return own + [name for each in setting.values() for name in _references(each)]
    return [name for each in setting for name in _references(each)] if isinstance(setting, list) else []


def _sections(properties: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for each in properties.values() for name in _references(each)))


def _line(text: str) -> str:
    """Return a text in one line that a table's cell can hold."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
