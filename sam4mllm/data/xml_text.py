"""XML from files and requests: parsed without entities, which could expand to any size."""

from __future__ import annotations

from xml.etree.ElementTree import Element, ParseError, fromstring

from sam4mllm.errors import DataError


def parse_xml(text: str, where: str) -> Element:
    """Parse XML; `where` names it in errors.

    Raises:
        DataError: Not XML, or XML that defines entities or a document type.
    """
    # Expat takes a text with NUL characters for UTF-16, in which the search below finds no entities.
    if "\0" in text:
        raise DataError(f"{where}: must be XML in UTF-8: it holds NUL characters", "field")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(f"{where}: defines a document type or entities; remove them", "field")
    try:
        return fromstring(text)
    # UnicodeEncodeError: lone surrogates.
    except (ParseError, UnicodeEncodeError) as error:
        raise DataError(f"{where}: must be XML: {error}", "field") from error
