"""What `garrison lint` finds in Envoy's own configuration: only what is certain.

A file is Envoy's when some part of it has an `@type` of Envoy's. What Envoy itself refuses is Envoy's to say
(`envoy --mode validate`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from garrison.documents import Diagnostic, Document, Field, Severity

_TYPE = "@type"
_ENVOY = "type.googleapis.com/envoy."
_BUCKET_SETTINGS = f"{_ENVOY}extensions.filters.http.rate_limit_quota.v3.RateLimitQuotaBucketSettings"
_NO_ASSIGNMENT = ("no_assignment_behavior", "noAssignmentBehavior")
_FALLBACK = ("fallback_rate_limit", "fallbackRateLimit")
_TOKEN_BUCKET = ("token_bucket", "tokenBucket")
_BUCKET_ID = ("bucket_id_builder", "bucketIdBuilder")
_VALUE = ("custom_value", "customValue")
_CONFIG = ("typed_config", "typedConfig")
_METADATA_INPUT = f"{_ENVOY}extensions.matching.common_inputs.network.v3.DynamicMetadataInput"


def is_envoy(document: Document) -> bool:
    """Return whether `document` looks like a configuration of Envoy's."""
    data = document.data
    if not isinstance(data, dict) or {"kind", "apiVersion"} & data.keys():
        return False
    return any(str(part.get(_TYPE, "")).startswith(_ENVOY) for _, part in _mappings(data, ()))


def lint(documents: Sequence[Document]) -> list[Diagnostic]:
    """Return the warnings about those of `documents` that look like Envoy's."""
    found = [document for document in documents if is_envoy(document)]
    return [problem for document in found for problem in (*_crashes(document), *_valueless(document))]


def _crashes(document: Document) -> Iterator[Diagnostic]:
    """Yield a warning for each quota bucket that ends Envoy 1.40 with its second call (seen with 1.40.0)."""
    for path, settings in _mappings(document.data, ()):
        if settings.get(_TYPE) != _BUCKET_SETTINGS:
            continue
        for here, bucket in _at(settings, path, _NO_ASSIGNMENT, _FALLBACK, _TOKEN_BUCKET):
            if bucket is not None:
                message = "Envoy 1.40 crashes at the second call of a bucket that starts with a token bucket"
                help_ = "use a `blanket_rule`"
                yield replace(document.error(here, "envoy_crash", message, help_), severity=Severity.WARNING)


def _valueless(document: Document) -> Iterator[Diagnostic]:
    """Yield a warning for each value of a bucket id that Envoy 1.40 never finds (seen with 1.40.0)."""
    for path, settings in _mappings(document.data, ()):
        if settings.get(_TYPE) != _BUCKET_SETTINGS:
            continue
        for where, entries in _at(settings, path, _BUCKET_ID, _BUCKET_ID):
            for name in entries if isinstance(entries, dict) else ():
                for here, kind in _at(entries[name], (*where, name), _VALUE, _CONFIG, (_TYPE,)):
                    if kind == _METADATA_INPUT:
                        message = (
                            "Envoy 1.40 gets no value from `DynamicMetadataInput` here, and allows every call"
                        )
                        help_ = "put the metadata into filter state, and use `FilterStateInput`"
                        problem = document.error(here, "envoy_no_value", message, help_)
                        yield replace(problem, severity=Severity.WARNING)


def _at(value: Any, path: Field, *spellings: tuple[str, ...]) -> Iterator[tuple[Field, Any]]:
    """Yield what is at the end of a path of fields, each of which has several spellings."""
    if not spellings:
        yield path, value
    elif isinstance(value, dict):
        for name in spellings[0]:
            if name in value:
                yield from _at(value[name], (*path, name), *spellings[1:])


def _mappings(value: Any, path: Field) -> Iterator[tuple[Field, dict[str, Any]]]:
    """Yield every mapping in `value` with its path; the depth of documents is bounded where they are read."""
    if isinstance(value, dict):
        yield path, value
        for name, item in value.items():
            yield from _mappings(item, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _mappings(item, (*path, index))
