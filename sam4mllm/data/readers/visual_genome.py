"""Reader of Visual Genome's region descriptions (Krishna et al., IJCV 2017): a phrase for each of 5.4 million boxes.

    region_descriptions.json: [{"id": image, "regions": [{"region_id": number, "image_id": image, "x": pixels,
                                "y": pixels, "width": pixels, "height": pixels, "phrase": text}, ...]}, ...]
    image_data.json: [{"image_id": number, "width": pixels, "height": pixels, "url": text, "coco_id": number | null}]

In the first versions an image's number is `image_id` in place of `id`. Images are `VG_100K/{number}.jpg` and
`VG_100K_2/{number}.jpg`, as their `url` names them, or all in one folder. A box that leaves its image is an error as in
every format; `skip_bad` leaves it out.

The file is read image by image. Boxes and phrases are kept as arrays, and a sample is made when it is asked for, so
that no list of samples takes memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from pydantic import Field

from sam4mllm.data.boxes import check_box
from sam4mllm.data.images import known_size_wh, size_mismatch
from sam4mllm.data.json_list import read_json_list
from sam4mllm.data.problems import naming, record_errors
from sam4mllm.data.records import Record, Text, check_not_empty, check_phrase, parse_record
from sam4mllm.data.registry import DatasetRow
from sam4mllm.data.sample import MaskObject, Sample
from sam4mllm.errors import DataError
from sam4mllm.geometry import Box

_FOLDERS = ("VG_100K", "VG_100K_2")


class _ImageData(Record):
    image_id: int
    width: int
    height: int
    url: Text = ""
    coco_id: int | None = None


class _ImageRegions(Record):
    id: int | None = None
    image_id: int | None = None
    regions: list[Any]


class _Region(Record):
    region_id: int = Field(ge=0, lt=2**63)
    image_id: int | None = None
    x: int
    y: int
    width: int
    height: int
    phrase: Text


class RegionSamples(Sequence[Sample]):
    """The regions of a file as samples with one box each, made on access; ids are `visual-genome/{image}/{region}`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._images: list[tuple[int, Path, tuple[int, int]]] = []
        self._image_of, self._region_ids = array("I"), array("Q")
        self._boxes_xywh = array("i")
        self._texts = bytearray()
        self._text_ends = array("Q")

    def add_image(self, image_id: int, path: Path, size_wh: tuple[int, int]) -> None:
        """Add an image; the regions that are added after it are its."""
        self._images.append((image_id, path, size_wh))

    def add_region(self, region: _Region) -> None:
        """Add a region of the last image, whose box is in it."""
        self._boxes_xywh.extend((region.x, region.y, region.width, region.height))
        self._image_of.append(len(self._images) - 1)
        self._region_ids.append(region.region_id)
        self._texts += region.phrase.encode()
        self._text_ends.append(len(self._texts))

    def __len__(self) -> int:
        return len(self._region_ids)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        image_id, path, size_wh = self._images[self._image_of[position]]
        x, y, width, height = self._boxes_xywh[4 * position : 4 * position + 4]
        phrase = self._texts[self._text_ends[position - 1] if position else 0 : self._text_ends[position]].decode()
        name = f"visual-genome/{image_id}/{self._region_ids[position]}"
        item = MaskObject(name, None, Box(x, y, x + width, y + height))
        source = f"{self._path}, image {image_id}, region {self._region_ids[position]}"
        return Sample(name, path, size_wh, phrase, (item,), source=source)


def read(row: DatasetRow, *, path: Path, images: Path | None = None, limit: int | None = None) -> RegionSamples:
    """Read the regions of a file, in its order.

    Args:
        row: The data set's row of the table.
        path: The file region_descriptions.json; image_data.json is beside it.
        images: The folder that holds the folders VG_100K and VG_100K_2, or the images; None for that of `path`.
        limit: The maximum number of samples, from the beginning; no image after them is read.

    Raises:
        DataError: A file that is missing or malformed; an image without regions or data; a box without area or out of
            its image; a phrase without text; an image of another size than annotated. An image that is missing is not
            an error here.
    """
    samples = RegionSamples(path)
    image_data = _read_image_data(path)
    folders = _folders(path.parent if images is None else images)
    known: set[int] = set()
    for index, value in enumerate(read_json_list(path, "Visual Genome's region descriptions")):
        with record_errors():
            record = parse_record(_ImageRegions, value, f"{path}, entry {index}")
            image_id = record.id if record.image_id is None else record.image_id
            where = f"{path}, image {image_id}"
            if image_id is None or image_id in known:
                raise DataError(
                    f"{path}, entry {index}: its image is missing, or an earlier one's: {image_id}", "field"
                )
            if image_id not in image_data:
                raise DataError(f"{where}: image_data.json has no such image", "reference")
            known.add(image_id)
            data = image_data[image_id]
            image, size_wh = _path_of(data, folders), (data.width, data.height)
            on_disk = known_size_wh(image)
            if on_disk is not None and on_disk != size_wh:
                raise DataError(f"{where}: annotated at {size_mismatch(image, size_wh, on_disk)}", "image")
            with naming(where):
                # Its checks of the size, which a later access would otherwise fail by.
                Sample(f"visual-genome/{image_id}", image, size_wh, "", ())
            samples.add_image(image_id, image, size_wh)
            region_ids: set[int] = set()
            for number, region in enumerate(record.regions):
                with record_errors():
                    _add_region(samples, region, image_id, size_wh, region_ids, f"{where}, regions[{number}]")
                if len(samples) == limit:
                    return samples
    if not samples:
        with record_errors():
            raise DataError(f"{path}: no region in it")
    return samples


def coco_ids(row: DatasetRow, *, path: Path, images: Path | None = None) -> dict[Path, int]:
    """Return the COCO ids of the images that are COCO's.

    Raises:
        DataError: image_data.json is missing or malformed.
    """
    folders = _folders(path.parent if images is None else images)
    return {
        _path_of(each, folders): each.coco_id for each in _read_image_data(path).values() if each.coco_id is not None
    }


def _add_region(
    samples: RegionSamples, value: Any, image_id: int, size_wh: tuple[int, int], region_ids: set[int], where: str
) -> None:
    region = parse_record(_Region, value, where)
    with naming(f"{where} (region {region.region_id})"):
        if region.image_id not in (None, image_id):
            raise DataError(f"it belongs to image {region.image_id}", "reference")
        if region.region_id in region_ids:
            raise DataError("an earlier region has its region_id as well", "duplicate")
        region_ids.add(region.region_id)
        check_phrase(check_not_empty(region.phrase), "it")
        check_box(Box(region.x, region.y, region.x + region.width, region.y + region.height), size_wh)
        samples.add_region(region)


def _read_image_data(path: Path) -> dict[int, _ImageData]:
    """Return the records of the image_data.json beside `path` by image."""
    file = path.with_name("image_data.json")
    what = "the sizes of Visual Genome's images, and their COCO ids, by which held-out images are found,"
    records: dict[int, _ImageData] = {}
    for index, value in enumerate(read_json_list(file, what)):
        with record_errors():
            record = parse_record(_ImageData, value, f"{file}, entry {index}")
            if record.image_id in records or min(record.width, record.height) < 1:
                raise DataError(
                    f"{file}, entry {index}: an earlier entry has the image {record.image_id} as well, or it has no "
                    f"pixels ({record.width}, {record.height})",
                    "duplicate",
                )
            records[record.image_id] = record
    return records


def _folders(images: Path) -> dict[str, Path]:
    """Return the folder of the images by the name of the folder in their url."""
    return {name: images / name if (images / name).is_dir() else images for name in _FOLDERS}


def _path_of(data: _ImageData, folders: dict[str, Path]) -> Path:
    name = data.url.split("/")[-2] if "/" in data.url else ""
    return folders.get(name, folders[_FOLDERS[0]]) / f"{data.image_id}.jpg"
