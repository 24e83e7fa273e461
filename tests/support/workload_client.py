"""The SPIFFE project's own client of the Workload API, as a process: its messages and ours share their names.

`python -m support.workload_client SOCKET COMMAND [ARGUMENT]...` prints lines of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]


async def ask(socket: Path, *command: str) -> Any:
    """Return what the client prints for `command`, decoded."""
    process = await start(socket, *command)
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return json.loads(output)


async def start(socket: Path, *command: str) -> asyncio.subprocess.Process:
    """Start the client; it prints to `stdout` of what is returned."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "support.workload_client",
        str(socket),
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )


def main() -> None:
    """Make one call, or follow one stream."""
    # Not where this module is imported: the messages would be there twice.
    from spiffe import SpiffeId, TrustDomain, WorkloadApiClient  # noqa: PLC0415
    from spiffe.errors import PySpiffeError  # noqa: PLC0415

    socket, command, *arguments = sys.argv[1:]

    def x509() -> Any:
        return _context(client.fetch_x509_context())

    def x509_bundles() -> Any:
        bundles = client.fetch_x509_bundles()
        return {
            name: len(found.x509_authorities)
            for name in arguments
            if (found := bundles.get_bundle_for_trust_domain(TrustDomain(name)))
        }

    def jwt() -> Any:
        tokens = client.fetch_jwt_svids(set(arguments))
        return [[str(one.spiffe_id), one.token, sorted(one.audience)] for one in tokens]

    def jwt_of() -> Any:
        found = client.fetch_jwt_svid(set(arguments[1:]), SpiffeId(arguments[0]))
        return [str(found.spiffe_id), found.token]

    def jwt_bundles() -> Any:
        bundles = client.fetch_jwt_bundles()
        return {
            name: sorted(found.jwt_authorities)
            for name in arguments
            if (found := bundles.get_bundle_for_trust_domain(TrustDomain(name)))
        }

    def validate() -> Any:
        found = client.validate_jwt_svid(arguments[0], arguments[1])
        return [str(found.spiffe_id), sorted(found.audience)]

    def follow_x509() -> Any:
        follow(client.stream_x509_contexts, _context)

    def follow_jwt_bundles() -> Any:
        def kids(bundles: Any) -> Any:
            return sorted(bundles.get_bundle_for_trust_domain(TrustDomain(arguments[0])).jwt_authorities)

        follow(client.stream_jwt_bundles, kids)

    def follow(stream: Callable[..., Any], describe: Callable[[Any], Any]) -> None:
        ended = threading.Event()

        def failed(error: Exception) -> None:
            _print({"error": str(error)})
            ended.set()

        stream(lambda found: _print(describe(found)), failed)
        ended.wait()

    commands: dict[str, Callable[[], Any]] = {
        "x509": x509,
        "x509-bundles": x509_bundles,
        "jwt": jwt,
        "jwt-of": jwt_of,
        "jwt-bundles": jwt_bundles,
        "validate": validate,
        "follow-x509": follow_x509,
        "follow-jwt-bundles": follow_jwt_bundles,
    }
    with WorkloadApiClient(f"unix://{socket}") as client:
        try:
            _print(commands[command]())
        except PySpiffeError as error:
            _print({"error": str(error)})


def _context(context: Any) -> Any:
    return [
        [str(svid.spiffe_id), svid.leaf.serial_number, len(svid.cert_chain)] for svid in context.x509_svids
    ]


def _print(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
