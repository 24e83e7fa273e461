"""YAML documents as plain data that remembers where everything stood.

`parse` gives documents, `validate` gives a model or `Diagnostic`s; both collect every problem instead of
stopping at the first. Used by policies, rate limits and the process settings alike.
"""

from garrison.documents.diagnostic import Diagnostic, Field, Position, Severity, format_field
from garrison.documents.document import Document
from garrison.documents.files import DocumentCache, Listing, Loaded, find_files, list_files, load
from garrison.documents.validation import validate
from garrison.documents.yaml import parse

__all__ = [
    "Diagnostic",
    "Document",
    "DocumentCache",
    "Field",
    "Listing",
    "Loaded",
    "Position",
    "Severity",
    "find_files",
    "format_field",
    "list_files",
    "load",
    "parse",
    "validate",
]
