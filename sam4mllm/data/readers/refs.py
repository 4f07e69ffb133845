"""Refs: the records of RefCOCO's family, which link an image's annotated objects to sentences about them.

The format is that of UNC's `refer` package. RefCOCO, RefCOCO+ and RefCOCOg store refs as a pickle, gRefCOCO as JSON and
with another kind of target; their readers differ in these two points alone. An image's file name is taken from
instances.json, because a ref's own may carry one more suffix.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from sam4mllm.data.problems import naming, record_errors
from sam4mllm.data.readers.instances import Instances
from sam4mllm.data.records import Record, Text, parse_record
from sam4mllm.data.registry import DatasetRow
from sam4mllm.data.sample import Sample
from sam4mllm.errors import DataError
from sam4mllm.utils.garbage import paused_garbage_collection

COCO_IMAGES = Path("images/mscoco/images/train2014")


class _Sentence(Record):
    sent_id: int
    sent: Text


class RefRecord(Record):
    """A ref as the file holds it. Subclasses add the field of the target."""

    ref_id: int
    image_id: int
    split: Text
    sentences: list[_Sentence]

    def annotation_ids(self) -> tuple[int, ...]:
        """Return the annotations of the ref's objects, each once; none for "no target".

        Raises:
            ValueError: An invalid target.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Ref:
    """One ref: the annotations of its objects (none for "no target") and its sentences as (sent_id, text)."""

    ref_id: int
    image_id: int
    annotation_ids: tuple[int, ...]
    split: str
    sentences: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True)
class RefsFile:
    """A file of refs: every ref of every split, in the file's order."""

    path: Path
    refs: tuple[Ref, ...]

    def samples(self, split: str, instances: Instances, name: str, limit: int | None) -> list[Sample]:
        """Return a sample for each sentence of each ref of the split; ids are `{name}/{split}/{ref_id}/{sent_id}`.

        Raises:
            DataError: The split has no ref; an id occurs twice; an image or annotation is not in instances.json.
        """
        chosen = [ref for ref in self.refs if ref.split == split]
        if not chosen:
            raise DataError(
                f"{self.path}: no ref belongs to the split {split!r}; the file has: "
                f"{', '.join(sorted(self.splits())) or 'none'}"
            )
        samples: list[Sample] = []
        ids: set[str] = set()
        for ref in chosen:
            where = f"{self.path}, ref {ref.ref_id}"
            with record_errors():
                image = instances.image(ref.image_id, where)
                objects = []
                for annotation in ref.annotation_ids:
                    with record_errors():
                        objects.append(instances.object(annotation, ref.image_id, where))
                if len(objects) < len(ref.annotation_ids):
                    continue
                objects_of_ref = tuple(objects)
                for sent_id, phrase in ref.sentences:
                    sample_id = f"{name}/{split}/{ref.ref_id}/{sent_id}"
                    if sample_id in ids:
                        raise DataError(
                            f"{where}: the sentence {sent_id} comes twice, so {sample_id} would name two queries",
                            "duplicate",
                        )
                    ids.add(sample_id)
                    with naming(where):
                        sample = Sample(sample_id, image.path, image.size_wh, phrase, objects_of_ref, source=where)
                    samples.append(sample)
                    if len(samples) == limit:
                        return samples
        return samples

    def splits(self) -> set[str]:
        """Return the names of the splits that the refs belong to."""
        return {ref.split for ref in self.refs}

    def images_by_split(self, instances: Instances) -> dict[str, list[Path]]:
        """Return the images of every split, each once.

        Raises:
            DataError: A ref's image is not in instances.json.
        """
        first_refs: dict[str, dict[int, int]] = {}
        for ref in self.refs:
            first_refs.setdefault(ref.split, {}).setdefault(ref.image_id, ref.ref_id)
        return {
            split: [instances.path_of(image_id, f"{self.path}, ref {ref_id}") for image_id, ref_id in images.items()]
            for split, images in first_refs.items()
        }


_FileVersion: TypeAlias = tuple[Path, int, int] | None
# The images of data sets that this process has parsed: the leakage filter needs them after the samples were read, and
# parsing a file of refs takes seconds. A changed file has another version, and is parsed again.
_known_images: dict[tuple[_FileVersion, _FileVersion, Path], dict[str, list[Path]]] = {}


class RefsReader:
    """The functions of a reader file of refs: `read`, `splits` and `images_by_split`.

    Args:
        file_name: The name of the file of refs, with `{}` in place of `split_by`.
        load: Parses that file to the list of its records.
        record: The type of its records.
    """

    def __init__(self, file_name: str, load: Callable[[Path], object], record: type[RefRecord]) -> None:
        self._file_name = file_name
        self._load = load
        self._record = record

    @paused_garbage_collection()
    def read(
        self,
        row: DatasetRow,
        *,
        root: Path,
        split: str,
        split_by: str,
        images: Path | None = None,
        limit: int | None = None,
    ) -> list[Sample]:
        """Read the samples of one split; arguments as in `sam4mllm.data.reading.read_dataset`.

        Raises:
            DataError: A file is missing or malformed; no such split.
        """
        refs = self._parse(row, root, split_by)
        instances = Instances(*_instances_arguments(row, root, images))
        # A bad ref of another split is an error only when that split is read.
        with suppress(DataError):
            _known_images[_version_key(refs.path, row, root, images)] = refs.images_by_split(instances)
        return refs.samples(split, instances, row.folder or row.name, limit)

    @paused_garbage_collection()
    def splits(self, row: DatasetRow, *, root: Path, split_by: str, images: Path | None = None) -> set[str]:
        """Return the names of the splits; only the file of refs is read.

        Raises:
            DataError: The file is missing or malformed.
        """
        return self._parse(row, root, split_by).splits()

    @paused_garbage_collection()
    def images_by_split(
        self, row: DatasetRow, *, root: Path, split_by: str, images: Path | None = None
    ) -> dict[str, list[Path]]:
        """Return the images of every split; no mask is decoded, and files that were parsed before are not read again.

        Raises:
            DataError: A file is missing or malformed.
        """
        key = _version_key(self._path(row, root, split_by), row, root, images)
        if key not in _known_images:
            refs = self._parse(row, root, split_by)
            _known_images[key] = refs.images_by_split(Instances(*_instances_arguments(row, root, images)))
        return _known_images[key]

    def _path(self, row: DatasetRow, root: Path, split_by: str) -> Path:
        return row.folder_in(root) / self._file_name.format(split_by)

    def _parse(self, row: DatasetRow, root: Path, split_by: str) -> RefsFile:
        path = self._path(row, root, split_by)
        return RefsFile(path, parse_refs(self._load(path), path, self._record))


def parse_refs(records: object, path: Path, kind: type[RefRecord]) -> tuple[Ref, ...]:
    """Validate the records of a file of refs.

    Raises:
        DataError: The first record that is not a ref, named by its ref_id or its index in the list.
    """
    if not isinstance(records, list):
        raise DataError(f"{path}: a refs file is a list of refs; found {type(records).__name__}")
    refs = []
    for index, value in enumerate(records):
        ref_id = value.get("ref_id") if isinstance(value, dict) else None
        where = f"{path}, ref {ref_id}" if type(ref_id) is int else f"{path}, record {index}"
        with record_errors():
            refs.append(_parse_ref(kind, value, where))
    return tuple(refs)


def _parse_ref(kind: type[RefRecord], value: object, where: str) -> Ref:
    record = parse_record(kind, value, where)
    try:
        annotation_ids = record.annotation_ids()
    except ValueError as error:
        raise DataError(f"{where}: {error}", "reference") from None
    sentences = tuple((sentence.sent_id, sentence.sent) for sentence in record.sentences)
    return Ref(record.ref_id, record.image_id, annotation_ids, record.split, sentences)


def _instances_arguments(row: DatasetRow, root: Path, images: Path | None) -> tuple[Path, Path, str]:
    """Return the file of instances, the folder of the images, and the beginning of the objects' ids."""
    folder = root / COCO_IMAGES if images is None else images
    return row.folder_in(root) / "instances.json", folder, row.folder or row.name


def _version_key(
    refs: Path, row: DatasetRow, root: Path, images: Path | None
) -> tuple[_FileVersion, _FileVersion, Path]:
    instances, folder, _ = _instances_arguments(row, root, images)
    return _file_version(refs), _file_version(instances), folder


def _file_version(path: Path) -> _FileVersion:
    if not path.is_file():
        return None
    stat = path.stat()
    return path, stat.st_size, stat.st_mtime_ns
