"""The check, before any work, that no output of a subcommand replaces a file that the subcommand reads."""

from __future__ import annotations

import stat
from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sam4mllm.cli.output import STDOUT
from sam4mllm.data.registry import DATASETS, dataset_names
from sam4mllm.errors import DataError
from sam4mllm.export.formats import FORMATS
from sam4mllm.runs.file_names import CHECKPOINT_FILES, JOB_FILES, WRITTEN_FILES
from sam4mllm.utils.atomic_io import check_folder_of, remove_leftovers
from sam4mllm.utils.folder_lock import check_not_file

if TYPE_CHECKING:
    from sam4mllm.recipe.schema import Recipe

_INPUT_OPTIONS = (
    "image",
    "queries",
    "predictions",
    "path",
    "phrases",
    "chat",
    "recipe",
    "run",
    "adapter",
    "segmenter",
)
"""The options of all subcommands whose value may be a file that is read."""

_JSON_BEGIN, _LINES_BEGIN = b"{\n", b'{"'
"""How the files of `--json` and those of `convert` begin; lines of JSON do not begin as the former do."""

_FILE_BEGINS = {"ask": b"", "segment": b"", "convert": _LINES_BEGIN}
"""The subcommands whose `--output` is a file, and how it begins; for `export` the format decides."""


@dataclass(slots=True)
class _Inputs:
    """What a subcommand reads: files, and the folders of data sets, in which every file is one of the data set."""

    files: list[Path] = field(default_factory=list)
    data_folders: list[Path] = field(default_factory=list)

    def add_data(self, dataset: str, root: Path | None, *files: Path | None) -> None:
        """Add a data set: its folder under `root`, or the files or folder of custom data."""
        if root is not None:
            names = dataset_names("benchmark") if dataset == "all" else (dataset,)
            self.data_folders += [DATASETS[name].folder_in(root) for name in names]
        self.data_folders += [file for file in files if file is not None and file.is_dir()]
        self.files += [file for file in files if file is not None]


def check_outputs(options: Namespace) -> None:
    """Check every output of a parsed command line against everything that the subcommand reads.

    Temporary files that a killed process left beside an output file are removed.

    Raises:
        DataError: An output is an input, a file of a data set, of a checkpoint or of a run, or another output; its
            folder does not exist; it exists and holds something else than such an output; an output folder is a file.
    """
    inputs = _Inputs([Path(value) for name in _INPUT_OPTIONS if (value := getattr(options, name, None))])
    datasets = getattr(options, "dataset", None) or []
    for dataset in [datasets] if isinstance(datasets, str) else datasets:
        inputs.add_data(dataset, options.root, options.path, options.phrases)
    folder = getattr(options, "output", None) if _output_begins(options) is None else None
    if folder is not None:
        _check_folder(Path(folder), inputs)
    written: list[Path] = []
    for option, file, beginning in _output_files(options):
        check_folder_of(file)
        _check_not_input(option, file, inputs)
        _check_not_of_run(option, file, [Path(each) for each in (folder, getattr(options, "run", None)) if each])
        _check_replaceable(option, file, beginning)
        if file.resolve() in written:
            raise DataError(f"{file}: is given for two outputs; give another file with {option}")
        written.append(file.resolve())
    for file in written:
        remove_leftovers(file)


def _output_begins(options: Namespace) -> bytes | None:
    """Return how the content of a file of `--output` begins; None if that option is a folder or does not exist."""
    if options.subcommand == "export":
        return FORMATS[options.to].beginning
    return _FILE_BEGINS.get(options.subcommand)


def check_not_recipe_data(recipe: Recipe, file: str | None) -> None:
    """Check that the file of `--json` is not one of the data sets of a recipe.

    Raises:
        DataError: It is one of them.
    """
    if file in (None, STDOUT):
        return
    data, inputs = recipe.data, _Inputs()
    for entry in [*data.train, *([data.validation] if data.validation else []), *(data.guard or [])]:
        inputs.add_data(entry.dataset, entry.root, entry.path, entry.phrases)
    _check_not_input("--json", Path(file), inputs)


def _output_files(options: Namespace) -> Iterator[tuple[str, Path, bytes]]:
    """Yield the option and the path of each output that is a file, and how the content of earlier such files begins."""
    if (beginning := _output_begins(options)) is not None and options.output is not None:
        yield "--output", options.output, beginning
    if getattr(options, "mask", None) is not None:
        yield "--mask", options.mask, b""
    if getattr(options, "json", None) not in (None, STDOUT):
        yield "--json", Path(options.json), _JSON_BEGIN


def _check_not_input(option: str, file: Path, inputs: _Inputs) -> None:
    if any(_is_same(file, source) for source in inputs.files):
        raise DataError(f"{file}: is read by this command; give another file with {option}")
    for folder in inputs.data_folders:
        if _is_within(file, [folder]):
            raise DataError(
                f"{file}: is in {folder}, the folder of a data set that is read; give a file elsewhere with {option}"
            )
    if file.exists() and (names := [name for name in CHECKPOINT_FILES if (file.parent / name).exists()]):
        raise DataError(
            f"{file}: is a file of a checkpoint ({names[0]} is beside it); give a file elsewhere with {option}"
        )


def _check_not_of_run(option: str, file: Path, folders: Iterable[Path]) -> None:
    """Check that an output is not one of the files that subcommands keep in the folders of runs and of predictions."""
    if file.name not in WRITTEN_FILES:
        return
    beside_job = file.exists() and any((file.parent / name).exists() for name in JOB_FILES if name != file.name)
    if beside_job or _is_within(file, folders):
        raise DataError(f"{file}: is a file of a run or of its predictions; give another name with {option}")


def _check_replaceable(option: str, file: Path, beginning: bytes) -> None:
    """Check that an existing output may be replaced: a regular file that is empty or begins as such outputs do."""
    if file.is_symlink() and beginning == _LINES_BEGIN:
        raise DataError(f"{file}: is a symbolic link, which would be replaced; give the file itself with {option}")
    if not file.exists():
        return
    mode = file.stat().st_mode
    if stat.S_ISDIR(mode):
        raise DataError(f"{file}: is a folder; give a file with {option}")
    if not stat.S_ISREG(mode):
        # JSON is written through to a pipe or a device.
        if option == "--json":
            return
        raise DataError(f"{file}: is a pipe or a device; give a file with {option}")
    with file.open("rb") as opened:
        found = opened.read(len(beginning))
    if found not in (b"", beginning):
        raise DataError(
            f"{file}: exists, and holds something else than this command writes with {option}; remove it, or give "
            "another file"
        )


def _check_folder(folder: Path, inputs: _Inputs) -> None:
    """Check an output that is a folder: no file, no data set's, and no input has the name of a file written to it."""
    check_not_file(folder)
    if _is_within(folder, inputs.data_folders):
        raise DataError(f"{folder}: is the folder of a data set that is read; give another folder with --output")
    for name in WRITTEN_FILES:
        if any(_is_same(folder / name, source) for source in inputs.files):
            raise DataError(
                f"{folder / name}: is read by this command, which would replace it; give another folder with --output"
            )


def _is_same(file: Path, source: Path) -> bool:
    """Return whether two paths are the same existing file, also by a link."""
    return file.exists() and source.exists() and file.samefile(source)


def _is_within(file: Path, folders: Iterable[Path]) -> bool:
    """Return whether a path is one of the folders or below one."""
    return any(file.resolve().is_relative_to(folder.resolve()) for folder in folders if folder.is_dir())
