"""XML from files and requests: parsed without entities, which could expand to any size."""

from __future__ import annotations

from xml.etree.ElementTree import Element, ParseError, fromstring

from sam4mllm.errors import DataError


def parse_xml(content: bytes, where: str) -> Element:
    """Parse XML; `where` names it in errors.

    Raises:
        DataError: Not XML, or XML that defines entities or a document type.
    """
    if b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        raise DataError(f"{where}: defines a document type or entities; remove them")
    try:
        return fromstring(content)
    except ParseError as error:
        raise DataError(f"{where}: must be XML: {error}") from error
