"""`garrison check`, `eval` and `lint`: decisions and diagnostics without any server."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

import click
from envoy.service.auth.v3.external_auth_pb2 import CheckRequest
from google.protobuf import json_format

from authz.attributes import Attributes
from authz.decision import Decision, Explanation, Outcome
from authz.paths import PathNormalization
from authz.pipeline import decide, delegated_offline, explain
from authz.policy.compile import MeshSettings, compile_policies
from authz.policy.index import DestinationPolicies
from authz.service import DestinationResolver
from authz.snapshot import Snapshot, load_snapshot
from garrison.documents import Diagnostic, Document, load
from garrison.errors import ConfigError
from garrison.identity import TrustDomain
from garrison.transport import Call, Peer

ALLOWED, DENIED, FAILED = 0, 1, 2

Command = TypeVar("Command", bound=Callable[..., Any])


class _TrustDomainType(click.ParamType[TrustDomain]):
    name = "trust domain"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> TrustDomain:
        try:
            return value if isinstance(value, TrustDomain) else TrustDomain.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def mesh_options(command: Command) -> Command:
    """Add the options that say how policies read: trust domains, root namespace, path normalisation."""
    for option in reversed(
        [
            click.option(
                "--trust-domain", type=_TrustDomainType(), default="cluster.local", show_default=True
            ),
            click.option("--trust-domain-alias", type=_TrustDomainType(), multiple=True, help="repeatable"),
            click.option("--root-namespace", default="istio-system", show_default=True),
            click.option(
                "--path-normalization",
                type=click.Choice([mode.value for mode in PathNormalization]),
                default=PathNormalization.BASE.value,
                show_default=True,
            ),
        ]
    ):
        command = option(command)
    return command


def _mesh(options: dict[str, Any]) -> MeshSettings:
    return MeshSettings(
        options["trust_domain"],
        tuple(options["trust_domain_alias"]),
        options["root_namespace"],
        PathNormalization(options["path_normalization"]),
    )


policies_option = click.option(
    "--policies",
    "policies",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="policy file or folder; repeatable",
)


@click.command(
    epilog="""\b
Exit codes: 0 allowed, 1 denied, 2 the policies or the request cannot be used.

\b
Example:
  garrison check --policies policies/ --request request.json --explain"""
)
@policies_option
@click.argument("more_policies", nargs=-1, type=click.Path(path_type=Path))
@click.option("--request", "request_file", required=True, help="a CheckRequest as protobuf JSON; - is stdin")
@click.option("--explain", "explained", is_flag=True, help="show every rule that was considered, and why not")
@click.option("--json", "as_json", is_flag=True, help="one JSON object instead of text")
@mesh_options
def check(
    policies: tuple[Path, ...],
    more_policies: tuple[Path, ...],
    request_file: str,
    explained: bool,  # noqa: FBT001 - a flag
    as_json: bool,  # noqa: FBT001 - a flag
    **options: Any,
) -> None:
    """Decide one CheckRequest and say which document, rule and field decided."""
    snapshot = _snapshot([*policies, *more_policies], _mesh(options))
    try:
        text = sys.stdin.buffer.read() if request_file == "-" else Path(request_file).read_bytes()
        request = _parse_request(json.loads(text.decode()))
    except (OSError, ValueError, RecursionError) as error:
        _fail(f"{request_file}: {_one_line(error)}")
    applying, attributes = _prepare(snapshot, request)
    if explained:
        explanation = explain(applying, attributes, time.time)
    else:
        explanation = Explanation(_decide(applying, attributes, time.time()))
    decision = explanation.decision
    click.echo(json.dumps(_check_json(explanation)) if as_json else _check_text(explanation))
    sys.exit(ALLOWED if decision.allowed else DENIED)


@click.command(
    name="eval",
    epilog="""\b
One JSON object a line in: {"id": ..., "request": <CheckRequest as protobuf JSON>, "at": <RFC 3339, optional>}
One a line out, in order:  {"id", "decision", "http_status", "policy", "rule", "reason"} or {"id", "error"}

\b
Exit codes: 0 every line was answered, 2 the policies or the file cannot be used.

\b
Example:
  garrison eval --policies policies/ --requests recorded.jsonl""",
)
@policies_option
@click.argument("more_policies", nargs=-1, type=click.Path(path_type=Path))
@click.option("--requests", "requests_file", required=True, help="JSON lines; - is stdin")
@mesh_options
def evaluate_lines(
    policies: tuple[Path, ...], more_policies: tuple[Path, ...], requests_file: str, **options: Any
) -> None:
    """Decide many CheckRequests, one JSON line each; a line that cannot be read gets an error line."""
    snapshot = _snapshot([*policies, *more_policies], _mesh(options))
    try:
        source: BinaryIO = sys.stdin.buffer if requests_file == "-" else Path(requests_file).open("rb")  # noqa: SIM115
    except OSError as error:
        _fail(f"{requests_file}: {_one_line(error)}")
    with source:
        for line in source:
            click.echo(json.dumps(_answer_line(snapshot, line)))


@click.command(
    epilog="""\b
Exit codes: 0 nothing found, 1 problems found, 2 usage.

\b
Example:
  garrison lint policies/ limits/"""
)
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="one JSON object a problem")
@mesh_options
def lint(paths: tuple[Path, ...], as_json: bool, **options: Any) -> None:  # noqa: FBT001 - a flag
    """Report every problem in policy and rate-limit files with file, line, column and field."""
    problems = find_problems(paths, _mesh(options))
    for problem in problems:
        click.echo(json.dumps(problem.as_json()) if as_json else str(problem))
    if not problems and not as_json:
        click.echo("no problems")
    sys.exit(1 if problems else 0)


# Lints documents of other kinds (rate limits); `garrison.cli` fills it, authz knows only policies.
OtherLinter = Callable[[list[Document]], tuple[list[Document], list[Diagnostic]]]
other_linters: list[OtherLinter] = []


def find_problems(paths: Iterable[Path], mesh: MeshSettings) -> list[Diagnostic]:
    """Return every problem of every file below `paths`, in the order of files and lines."""
    documents, problems = load(paths)
    for linter in other_linters:
        documents, found = linter(documents)
        problems += found
    _, found = compile_policies(documents, mesh)
    problems += found
    return sorted(problems, key=lambda problem: (problem.file, problem.position))


def _snapshot(paths: list[Path], mesh: MeshSettings) -> Snapshot:
    try:
        return load_snapshot(paths, mesh)
    except ConfigError as error:
        _fail(str(error))


def _answer_line(snapshot: Snapshot, line: bytes) -> dict[str, Any]:
    identifier: Any = None
    try:
        entry = json.loads(line.decode())
        if not isinstance(entry, dict):
            raise ValueError("the line is not a JSON object")  # noqa: TRY004, TRY301 - caught below
        identifier = entry.get("id")
        if unknown := sorted(set(entry) - {"id", "request", "at"}):
            raise ValueError(f"unknown field `{unknown[0]}`; known: id, request, at")  # noqa: TRY301
        now = _parse_time(entry["at"]) if "at" in entry else time.time()
        request = _parse_request(entry.get("request"))
        decision = _decide(*_prepare(snapshot, request), now)
    except (ValueError, RecursionError, OverflowError) as error:
        return {"id": identifier, "error": _one_line(error)}
    except Exception as error:  # noqa: BLE001 - a bug must not cost the lines after it; it is no verdict
        return {"id": identifier, "error": f"internal error: {type(error).__name__}"}
    return {"id": identifier, **_decision_json(decision)}


def _parse_request(data: Any) -> Any:
    if not isinstance(data, dict):
        raise ValueError("`request` is not a JSON object")  # noqa: TRY004 - one family for bad input
    try:
        request = json_format.ParseDict(data, CheckRequest())
        # What comes over the wire has passed this: it refuses text that is not UTF-8.
        return CheckRequest.FromString(request.SerializeToString())
    except json_format.ParseError as error:
        raise ValueError(f"`request` is not a CheckRequest: {error}") from error


def _parse_time(value: Any) -> float:
    if not isinstance(value, str) or len(value) < 20 or value[10] not in "Tt":
        raise ValueError("`at` is not an RFC 3339 time such as `2026-01-31T12:00:00Z`")
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError("`at` is not an RFC 3339 time such as `2026-01-31T12:00:00Z`") from None
    if moment.tzinfo is None:
        raise ValueError("`at` has no time zone")
    return moment.timestamp()


def _prepare(snapshot: Snapshot, request: Any) -> tuple[DestinationPolicies | None, Attributes]:
    context = request.attributes
    call = Call(Peer("offline"), ())
    destination = DestinationResolver().resolve(context.context_extensions, context.request.http.host, call)
    policies = snapshot.policies_for(destination) if destination is not None else None
    return policies, Attributes(context, snapshot.mesh.path_normalization, destination)


def _decide(policies: DestinationPolicies | None, attributes: Attributes, now: float) -> Decision:
    result = decide(policies, attributes, lambda: now)
    return result.decision if isinstance(result, Outcome) else delegated_offline(result)


def _decision_json(decision: Decision) -> dict[str, Any]:
    return {
        "decision": decision.verdict.value,
        "http_status": decision.http_status,
        "policy": decision.policy or None,
        "rule": decision.rule if decision.rule >= 0 else None,
        "reason": decision.reason,
    }


def _check_json(explanation: Explanation) -> dict[str, Any]:
    decision = explanation.decision
    answer = {
        **_decision_json(decision),
        "field": decision.field or None,
        "code": decision.code.value,
    }
    if explanation.attributes:
        answer["attributes"] = explanation.attributes
        answer["considered"] = [
            {
                "stage": stage,
                "policy": step.policy,
                "rule": step.rule,
                "matched": step.matched,
                "field": step.field,
                "detail": step.detail,
            }
            for stage, step in explanation.steps
        ]
    return answer


def _check_text(explanation: Explanation) -> str:
    decision = explanation.decision
    rule = f" rule {decision.rule}" if decision.rule >= 0 else ""
    where = f"{decision.policy}{rule}{' ' + decision.field if decision.field else ''}"
    lines = [
        f"{decision.verdict.value.upper()} (HTTP {decision.http_status})",
        f"decided by: {where or ('no policy denies it' if decision.allowed else 'nothing allows it')}",
        f"reason: {decision.reason}",
    ]
    if explanation.attributes:
        lines.append("attributes:")
        lines += [f"  {name}: {value}" for name, value in explanation.attributes.items()]
        lines.append("rules considered:" if explanation.steps else "rules considered: none")
        stage = ""
        for name, step in explanation.steps:
            if name != stage:
                stage = name
                lines.append(f"  {stage}")
            mark = "+" if step.matched else "-"
            lines.append(f"    {mark} {step.policy} rule {step.rule}: {step.detail}")
    return "\n".join(lines)


def _one_line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _fail(message: str) -> NoReturn:
    click.echo(f"error: {message}", err=True)
    sys.exit(FAILED)
