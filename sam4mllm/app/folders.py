"""Folders of images of the page: the folders below a root, and jobs that answer phrases about all images of one.

No file outside the root is read, also not by a symbolic link.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sam4mllm.app.limits import Limits
from sam4mllm.data.folder_queries import images_of, queries_about
from sam4mllm.data.images import IMAGE_SUFFIXES
from sam4mllm.data.records import shorten
from sam4mllm.errors import DataError
from sam4mllm.export.export import export_predictions
from sam4mllm.export.instances import ExportCounts
from sam4mllm.pipeline.batch import BatchSummary, Predictor, predict
from sam4mllm.utils.progress import Advance, ignore

_MOST_FOLDERS = 500


@dataclass(frozen=True, slots=True)
class FolderAnswer:
    """The answers about a folder: the COCO file, whose image names are relative to the root, and the counts."""

    coco: Path
    counts: ExportCounts
    summary: BatchSummary

    def text(self) -> str:
        """Return the counts as one line."""
        summary = self.summary
        return (
            f"{self.counts.instances} masks of {summary.total} phrases about images: {summary.ok} answered, "
            f"{summary.no_object} without an object, {summary.malformed} malformed, {summary.error} failed"
        )


class ImageFolders:
    """The folders of images below a root.

    Args:
        root: The root.
        limits: The limits of the page.

    Raises:
        DataError: There is no such folder.
    """

    def __init__(self, root: Path, limits: Limits) -> None:
        if not root.is_dir():
            raise DataError(f"{root}: no such folder; --root is the folder of folders with images")
        self.root = root.resolve()
        self._limits = limits

    def names(self) -> list[str]:
        """Return the folders that hold an image, relative to the root, which is "."; at most 500."""
        folders = itertools.chain([self.root], (path for path in sorted(self.root.rglob("*")) if path.is_dir()))
        found = (path for path in folders if self._is_within(path) and any(self._images(path)))
        return [path.relative_to(self.root).as_posix() for path in itertools.islice(found, _MOST_FOLDERS)]

    def images(self, name: str) -> list[Path]:
        """Return the images of a folder, sorted, without those of its subfolders.

        Raises:
            DataError: The folder is not below the root; it holds no image, or too many.
        """
        # A NUL character, for example, is no valid path.
        folder = self.root / name if name and "\0" not in name else None
        if folder is None or not self._is_within(folder) or not folder.is_dir():
            raise DataError(f"{shorten(name)}: no such folder of images below the root")
        images = self._images(folder)
        if not images:
            raise DataError(f"{shorten(name)}: no image in it (suffixes: {', '.join(sorted(IMAGE_SUFFIXES))})")
        if len(images) > self._limits.folder_images:
            raise DataError(
                f"{shorten(name)}: {len(images)} images, and the page answers at most {self._limits.folder_images}; "
                "use `sam4mllm predict`"
            )
        return images

    def answer(
        self, models: Predictor, name: str, phrases: Sequence[str], work: Path, advance: Advance = ignore
    ) -> FolderAnswer:
        """Answer each phrase about each image of a folder, and export the masks as COCO.

        Args:
            models: Answers the queries.
            name: The folder.
            phrases: The phrases.
            work: The folder in which a new folder of the job is created.
            advance: Called with the number of finished queries.

        Raises:
            DataError: As `images`; an answer cannot be exported.
        """
        queries = queries_about(self.images(name), phrases)
        job = Path(tempfile.mkdtemp(prefix="folder-", dir=work))
        summary = predict(models, queries, job, advance=advance)
        coco = job / "coco.json"
        counts = export_predictions(summary.predictions, "coco", coco)
        # The file leaves the server, whose paths it does not show.
        content = json.loads(coco.read_text(encoding="utf-8"))
        for image in content["images"]:
            image["file_name"] = Path(image["file_name"]).relative_to(self.root).as_posix()
        coco.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return FolderAnswer(coco, counts, summary)

    def _is_within(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self.root)

    def _images(self, folder: Path) -> list[Path]:
        return [path for path in images_of(folder) if self._is_within(path)]
