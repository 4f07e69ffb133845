"""The layout of the repository: sizes of files and functions, imports, and the paths that the documentation names."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "sam4mllm"
FOLDERS = ("sam4mllm", "tests", "toy_models", "benchmarks", "ablations", "examples", "tools")
LONGEST_FILE, LONGEST_FUNCTION, SHORTEST_MEDIAN = 300, 60, 110
PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))))
HEAVY = (
    "torch",
    "numpy",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "cv2",
    "matplotlib",
    "PIL",
    "openai",
    "llguidance",
)

SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    assert lines_of(path) <= LONGEST_FILE, f"{path} has {lines_of(path)} lines; split it"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {
        f"{each.name}, line {each.lineno}": (each.end_lineno or each.lineno) - each.lineno + 1 for each in functions
    }
    too_long = {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION}
    assert not too_long, f"{path}: split these functions (lines): {too_long}"


def test_the_package_is_not_fragmented() -> None:
    # A package's empty __init__.py is not a file to read.
    lengths = [length for length in map(lines_of, PACKAGE.rglob("*.py")) if length]
    assert statistics.median(lengths) > SHORTEST_MEDIAN


def imports_of(path: Path) -> set[str]:
    """The modules of the package that a file imports when it is imported itself, so not those of its functions."""
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending += ast.iter_child_nodes(node)
    return found


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """The nodes of one cycle, or an empty list."""
    finished: set[str] = set()

    def search(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in finished:
            return []
        cycles = (search(after, [*path, node]) for after in sorted(graph[node]))
        cycle = next((cycle for cycle in cycles if cycle), [])
        finished.add(node)
        return cycle

    return next((cycle for cycle in (search(node, []) for node in sorted(graph)) if cycle), [])


def test_modules_do_not_import_each_other_in_a_cycle() -> None:
    files = {module_of(path): path for path in PACKAGE.rglob("*.py")}
    graph = {module: (imports_of(path) & files.keys()) - {module} for module, path in files.items()}
    assert cycle_in(graph) == []


def test_a_cycle_is_found() -> None:
    assert cycle_in({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d", "b"]


def named_paths(page: str) -> set[str]:
    """The paths that a page links to, and the paths of code that it names in backticks."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    folder = (ROOT / page).parent
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*|[\w/]+\.py)`", text)
    return {(folder / link).resolve().relative_to(ROOT).as_posix() for link in links} | set(named)


@pytest.mark.parametrize("page", PAGES)
def test_the_paths_that_a_page_names_exist(page: str) -> None:
    # Pages name modules relative to the package.
    missing = [path for path in sorted(named_paths(page)) if not ((ROOT / path).exists() or (PACKAGE / path).exists())]
    assert not missing, f"{page} names paths that do not exist: {missing}"


@pytest.mark.parametrize("page", PAGES)
def test_no_line_of_a_paragraph_begins_like_a_quote_or_a_list(page: str) -> None:
    """Markdown renders a wrapped "IoU > 0.5" as a quote, and "n + 2" as a list, if the sign begins a line."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"(?<=[^\n]\n)[>+*=] .*", text) == []


def test_the_readme_maps_every_folder() -> None:
    """Each top-level folder of code and each package has a line."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Repository map")[2].partition("\n## ")[0]
    rows = set(re.findall(r"^\| \[([\w/]+)\]\(\1\)", section, re.MULTILINE))
    folders = {f"sam4mllm/{path.name}" for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    top = {path for path in (*FOLDERS, "docs", "recipes") if (ROOT / path).is_dir()}
    assert rows == folders | top


def test_architecture_lists_the_layers_of_import_linter() -> None:
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("layers = [")[2].partition("]")[0]
    layers = re.findall(r'"([^"]+)"', contract)
    table = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").partition("## Layers")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| \d+ \| ([^|]+) \|", table, re.MULTILINE)
    assert [" | ".join(re.findall(r"`(\w+)`", row)) for row in rows] == layers


def test_the_help_loads_no_heavy_library() -> None:
    program = (
        "import sys\n"
        "from sam4mllm.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as ended:\n    assert not ended.code\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "prepare" in done.stdout
