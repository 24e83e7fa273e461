"""`garrison ratelimit`: limits without any server; with one, see `remote.py`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NoReturn

import click
from envoy.service.ratelimit.v3.rls_pb2 import RateLimitResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from garrison.documents import Severity, load
from garrison.errors import ConfigError
from garrison.transport import Call, Peer
from ratelimit.algorithm import UNITS, Limit
from ratelimit.compile import Options, compile_limits, load_limits
from ratelimit.counters import why_not_limited
from ratelimit.protos import rls_pb2
from ratelimit.remote import reset, show
from ratelimit.response import ResponseOptions
from ratelimit.service import FAULT_HEADER, RateLimitService
from ratelimit.store.memory import MemoryStore
from ratelimit.tree import Limits

OK, FOUND, FAILED = 0, 1, 2
# Every request of a file of this many has a bucket of its own, and none is forgotten.
_MAX_BUCKETS = 10_000_000
_NANOSECONDS = 1_000_000_000
_CALL = Call(Peer(""), ())

Entry = Annotated[list[str], Field(min_length=2, max_length=2)]
UnitName = Annotated[str, Field(pattern="(?i)^(second|minute|hour|day|month|year)$")]
Count = Annotated[int, Field(ge=0, le=2**32 - 1)]
Addend = Annotated[int, Field(ge=0, le=2**64 - 1)]


class _Line(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class OverrideLine(_Line):
    """A limit that a request brings along."""

    requests_per_unit: Count
    unit: UnitName


class RequestLine(_Line):
    """One request; `at` is when, in seconds since the epoch."""

    id: str | int | None = None
    domain: str = ""
    descriptors: list[list[Entry]] = []
    hits_addend: Count = 0
    descriptor_hits_addend: list[Addend | None] = []
    limits: list[OverrideLine | None] = []
    at: Annotated[float, Field(ge=0, le=2**33)] | None = None

    def message(self) -> bytes:
        """Return the `RateLimitRequest`.

        Raises:
            ValueError: there are more limits or addends than descriptors.

        """
        if max(len(self.limits), len(self.descriptor_hits_addend)) > len(self.descriptors):
            raise ValueError("limits and descriptor_hits_addend: more of them than descriptors")
        message = rls_pb2.RateLimitRequest(domain=self.domain, hits_addend=self.hits_addend)
        for index, entries in enumerate(self.descriptors):
            descriptor = message.descriptors.add()
            for key, value in entries:
                descriptor.entries.add(key=key, value=value)
            limit = self.limits[index] if index < len(self.limits) else None
            if limit is not None:
                descriptor.limit.requests_per_unit = limit.requests_per_unit
                descriptor.limit.unit = UNITS[limit.unit.lower()].wire
            addends = self.descriptor_hits_addend
            if index < len(addends) and (addend := addends[index]) is not None:
                descriptor.hits_addend.value = addend
        serialized: bytes = message.SerializeToString()
        return serialized


@click.group()
def ratelimit() -> None:
    """Look into rate limits: mistakes, which limit counts, what requests come to, what a server counts."""


ratelimit.add_command(show)
ratelimit.add_command(reset)


@ratelimit.command(
    epilog="""\b
Exit codes: 0 no mistakes, 1 mistakes (or, with --strict, warnings), 2 nothing to read.

\b
Example:
  garrison ratelimit lint limits/"""
)
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--merge-domain-config", is_flag=True, help="several documents may share a domain")
@click.option("--strict", is_flag=True, help="warnings count as mistakes")
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line instead of text")
def lint(
    paths: tuple[Path, ...],
    merge_domain_config: bool,  # noqa: FBT001 - a flag
    strict: bool,  # noqa: FBT001 - a flag
    as_json: bool,  # noqa: FBT001 - a flag
) -> None:
    """Report every problem in rate-limit files and folders, with file, line and column."""
    documents, unreadable = load(paths)
    _, found = compile_limits(documents, Options(merge_domains=merge_domain_config))
    problems = [*unreadable, *found]
    for problem in problems:
        if as_json:
            position = problem.position
            shown = {"file": problem.file, "line": position.line, "column": position.column}
            shown |= {"severity": problem.severity.value, "code": problem.code, "message": problem.message}
            click.echo(json.dumps(shown))
        else:
            click.echo(str(problem))
    sys.exit(FOUND if any(strict or one.severity is Severity.ERROR for one in problems) else OK)


@ratelimit.command(
    epilog="""\b
Exit codes: 0 a limit counts, 1 nothing is limited, 2 the files or the descriptor cannot be used.

\b
Example:
  garrison ratelimit explain --config limits/ --domain shop user=alice path=/cart"""
)
@click.option("--config", "paths", multiple=True, required=True, type=click.Path(path_type=Path))
@click.option("--domain", required=True)
@click.argument("entries", nargs=-1, required=True, metavar="KEY=VALUE...")
@click.option("--merge-domain-config", is_flag=True, help="several documents may share a domain")
@click.option("--json", "as_json", is_flag=True, help="one JSON object instead of text")
def explain(
    paths: tuple[Path, ...],
    domain: str,
    entries: tuple[str, ...],
    merge_domain_config: bool,  # noqa: FBT001 - a flag
    as_json: bool,  # noqa: FBT001 - a flag
) -> None:
    """Say which limit counts for a descriptor, and where it stands; or at which entry none is left."""
    limits = _limits(paths, Options(merge_domains=merge_domain_config))
    for entry in entries:
        if not entry.partition("=")[0]:
            _fail(f"`{entry}` is not KEY=VALUE")
    pairs = [(key, value) for key, _, value in (entry.partition("=") for entry in entries)]
    explanation = _explanation(limits, domain, pairs)
    if as_json:
        click.echo(json.dumps(explanation))
    elif explanation["limited"]:
        click.echo(f"{explanation['source']}: {explanation['limit']}")
    else:
        click.echo(f"not limited: {explanation['reason']}")
    sys.exit(OK if explanation["limited"] else FOUND)


def _explanation(limits: Limits, name: str, entries: Sequence[tuple[str, str]]) -> dict[str, Any]:
    domain = limits.domains.get(name)
    rule = domain.find(entries) if domain is not None else None
    if isinstance(rule, Limit):
        length = f"{rule.requests_per_unit} a {rule.unit.name}"
        shown = f"{length} ({rule.name})" if rule.name else length
        return {"limited": True, "source": rule.source, "limit": shown, "shadow_mode": rule.shadow_mode}
    return {"limited": False, "reason": why_not_limited(limits, name, entries)}


@ratelimit.command(
    name="eval",
    epilog="""\b
One JSON object a line in: {"id", "domain", "descriptors": [[["key", "value"], ...], ...]}, and optional:
  "hits_addend", "descriptor_hits_addend": [...], "limits": [{"requests_per_unit", "unit"}, ...] (null: none),
  "at": seconds since the epoch (if left out: that of the line before; the first: 0)
One a line out, in order: {"id", "overall", "statuses": [{"code", "limit_remaining", "requests_per_unit",
  "unit", "name", "duration_until_reset"}]} or {"id", "error"}; "fault" says why none could be decided

\b
Exit codes: 0 every line was answered, 2 the configuration or the file cannot be used.

\b
Example:
  garrison ratelimit eval --config limits/ --requests recorded.jsonl""",
)
@click.option("--config", "paths", multiple=True, required=True, type=click.Path(path_type=Path))
@click.option("--requests", "requests_file", required=True, help="JSON lines; - is stdin")
@click.option("--shadow-mode", is_flag=True, help="the verdict is OK, whatever the limits say")
@click.option("--quota-mode", is_flag=True, help="only all limits of a request together deny it")
@click.option("--merge-domain-config", is_flag=True, help="several documents may share a domain")
def evaluate(
    paths: tuple[Path, ...],
    requests_file: str,
    shadow_mode: bool,  # noqa: FBT001 - a flag
    quota_mode: bool,  # noqa: FBT001 - a flag
    merge_domain_config: bool,  # noqa: FBT001 - a flag
) -> None:
    """Answer requests in order, with counters in memory and a clock that says what each line says."""
    limits = _limits(paths, Options(quota_mode=quota_mode, merge_domains=merge_domain_config))
    try:
        source: BinaryIO = sys.stdin.buffer if requests_file == "-" else Path(requests_file).open("rb")  # noqa: SIM115
    except OSError as error:
        _fail(f"{requests_file}: {error.strerror}")
    with source:
        for answer in answers(limits, source, shadow_mode=shadow_mode):
            click.echo(json.dumps(answer))


def answers(
    limits: Limits, lines: Iterator[bytes] | BinaryIO, *, shadow_mode: bool = False
) -> Iterator[dict[str, Any]]:
    """Yield the answer to each of `lines`; blank ones are left out."""
    now = 0
    service = RateLimitService(
        lambda: limits, MemoryStore(_MAX_BUCKETS), lambda: now, ResponseOptions(shadow_mode=shadow_mode)
    )
    for line in lines:
        if not line.strip():
            continue
        identifier: Any = None
        try:
            data = json.loads(line)
            if isinstance(data, dict) and isinstance(data.get("id"), str | int):
                identifier = data["id"]
            request = RequestLine.model_validate(data)
            message = request.message()
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            field = ".".join(map(str, problem["loc"])) or "the line"
            yield {"id": identifier, "error": f"{field}: {problem['msg']}"}
            continue
        except (ValueError, RecursionError) as error:
            yield {"id": identifier, "error": str(error) or type(error).__name__}
            continue
        if request.at is not None:
            now = round(request.at * _NANOSECONDS)
        answer = service.should_rate_limit(message, _CALL)
        assert isinstance(answer, bytes)  # noqa: S101 - memory answers at once
        yield {"id": identifier, **_shown(RateLimitResponse.FromString(answer))}


def _shown(response: Any) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "overall": RateLimitResponse.Code.Name(response.overall_code),
        "statuses": [_status(status) for status in response.statuses],
    }
    for header in response.response_headers_to_add:
        if header.key == FAULT_HEADER:
            shown["fault"] = header.value
    return shown


def _status(status: Any) -> dict[str, Any]:
    limit = status.current_limit if status.HasField("current_limit") else None
    reset = status.duration_until_reset if status.HasField("duration_until_reset") else None
    return {
        "code": RateLimitResponse.Code.Name(status.code),
        "limit_remaining": status.limit_remaining,
        "requests_per_unit": limit.requests_per_unit if limit is not None else None,
        "unit": RateLimitResponse.RateLimit.Unit.Name(limit.unit) if limit is not None else None,
        "name": limit.name if limit is not None else None,
        "duration_until_reset": reset.seconds + reset.nanos / _NANOSECONDS if reset is not None else None,
    }


def _limits(paths: Sequence[Path], options: Options) -> Limits:
    try:
        return load_limits(paths, options)
    except ConfigError as error:
        _fail("\n".join(map(str, error.diagnostics)))


def _fail(message: str) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(FAILED)
