"""Recognition of files that are not what a reader expects: compressed files, failed downloads, other formats."""

from __future__ import annotations

HEAD_BYTES = 256
"""How many bytes from a file's beginning `wrong_kind` needs."""

_DOWNLOAD = "download the file again"
_SIGNATURES = (
    (b"\x1f\x8b", "is compressed with gzip; decompress it first"),
    (b"BZh", "is compressed with bzip2; decompress it first"),
    (b"\xfd7zXZ\x00", "is compressed with xz; decompress it first"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd; decompress it first"),
    (b"PK\x03\x04", "is a zip archive; unpack it first"),
    (b"\xff\xfe", "is text in UTF-16; save it as UTF-8"),
    (b"\xfe\xff", "is text in UTF-16; save it as UTF-8"),
    (b"\x89PNG", "is a PNG image"),
    (b"\xff\xd8\xff", "is a JPEG image"),
    (b"PAR1", "is a Parquet file; read it as the data set hub"),
    (b"\x80", "is a pickle"),
    (b"version https://git-lfs", f"is a Git LFS pointer in place of the content; run `git lfs pull`, or {_DOWNLOAD}"),
)
_HTML = (b"<!doctype html", b"<html", b"<?xml")


def wrong_kind(head: bytes) -> str | None:
    """Return what a file is and what to do, from its first bytes; None if it may be text or a pickle of protocol 0.

    A pickle of another protocol is recognized as one, so a reader of pickles asks only if it could not read the file.
    """
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not text:
        return f"is empty; {_DOWNLOAD}" if len(head) < HEAD_BYTES else None
    return f"is an HTML or XML page, as failed downloads are; {_DOWNLOAD}" if text.startswith(_HTML) else None


def is_json_list(head: bytes) -> bool:
    """Return whether a file is a JSON list, which begins with a bracket, and not JSON lines."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
