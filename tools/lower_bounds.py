"""Print the lower bounds of pyproject.toml as constraints, for an environment of the oldest versions.

python tools/lower_bounds.py > oldest.txt && pip install -e ".[dev]" -c oldest.txt
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def requirements(project: dict[str, Any]) -> list[str]:
    """Return the dependencies of a `project` table with those of all extras, without references to the extras."""
    extras = (line for lines in project["optional-dependencies"].values() for line in lines)
    return [line for line in [*project["dependencies"], *extras] if not line.startswith(f"{project['name']}[")]


def lower_bounds(project: dict[str, Any]) -> list[str]:
    """Return "name==version" for the lower bound of each requirement.

    Raises:
        ValueError: A requirement without a lower bound.
    """
    pins = []
    for line in requirements(project):
        found = re.match(r"([\w.-]+)>=([\w.]+)(,|$)", line)
        if found is None:
            raise ValueError(f"{line!r} has no lower bound; write name>=version")
        pins.append(f"{found[1]}=={found[2]}")
    return pins


if __name__ == "__main__":
    with (ROOT / "pyproject.toml").open("rb") as file:
        print("\n".join(lower_bounds(tomllib.load(file)["project"])))
