"""A validated document with the YAML it came from, as the compilers of Mixer's kinds see it."""

from __future__ import annotations

from dataclasses import dataclass

from authz.policy.documents.kubernetes import Resource
from garrison.documents import Document, Field

# Kind, namespace and name.
Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A validated document with the YAML it came from."""

    resource: Resource
    document: Document

    @property
    def key(self) -> Key:
        """Kind, namespace and name."""
        return self.resource.kind, self.resource.metadata.namespace, self.resource.metadata.name

    @property
    def full_name(self) -> str:
        """`<name>.<kind>.<namespace>`, as Mixer writes it in messages."""
        kind, namespace, name = self.key
        return f"{name}.{kind}.{namespace}"


def spelled(one: Loaded, base: Field, camel: str) -> Field:
    """Return the path of a field in the spelling that the document uses."""
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in camel)
    data = one.document.data
    for part in base:
        data = data[part] if data else {}
    return (*base, snake if data and snake in data else camel)
