"""XML from files and requests: parsed without entities, which could expand to any size."""

from __future__ import annotations

from xml.etree.ElementTree import Element, ParseError, fromstring

from sam4mllm.errors import DataError


def parse_xml(text: str, where: str) -> Element:
    """Parse XML; `where` names it in errors. It is a text, as bytes in other encodings could hide entities.

    Raises:
        DataError: Not XML, or XML that defines entities or a document type.
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(f"{where}: defines a document type or entities; remove them", "field")
    try:
        return fromstring(text)
    # UnicodeEncodeError: lone surrogates.
    except (ParseError, UnicodeEncodeError) as error:
        raise DataError(f"{where}: must be XML: {error}", "field") from error
