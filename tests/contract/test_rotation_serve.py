"""A real server and `ca authority` on one CA: whoever verifies peers follows every step, in every worker."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from support.asking import page
from support.ca_files import done, run, secret
from support.checks import check_request, principal, role
from support.peer_certificates import encoded
from support.serving import PATIENCE_SECONDS, serving, write_settings

from ca.authority import Authority
from ca.authority_files import FOLDER
from ca.keys import new_private_key
from ca.passphrase import read_passphrase_file
from garrison.identity import SpiffeId

CHECK = "/envoy.service.auth.v3.Authorization/Check"
PEER = principal("a")


def eventually(look: Callable[[], bool], what: str) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not look():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


class Asker:
    """Asks about calls of a peer that shows a leaf; Envoy sends no intermediate along."""

    def __init__(self, addresses: list[str], pki: Path, secret: Path) -> None:
        self.addresses = addresses
        self._pki = pki
        self._secret = secret

    def leaf(self, folder: str = "") -> str:
        """Return a new leaf of the authority in a folder of the CA, as Envoy sends it."""
        authority = Authority.load(self._pki / folder, lambda _: read_passphrase_file(self._secret))
        now = datetime.now(UTC)
        key = new_private_key().public_key()
        svid = authority.issue(SpiffeId.parse(PEER), key, now=now, ttl=timedelta(hours=1))
        return encoded(svid.leaf)

    def codes(self, leaf: str) -> set[str]:
        """Return what every worker decides."""
        request = check_request(source=PEER)
        request.attributes.source.certificate = leaf
        found = set()
        for address in self.addresses:
            with grpc.insecure_channel(address.replace("unix://", "unix:")) as channel:
                method: Any = channel.unary_unary(CHECK)
                answer = method(request.SerializeToString(), timeout=20, wait_for_ready=True)
            found.add(str(CheckResponse.FromString(answer).dynamic_metadata["code"]))
        return found


@pytest.mark.parametrize("workers", [1, 2])
def test_verification_of_peers_follows(tmp_path_factory: pytest.TempPathFactory, workers: int) -> None:
    """A leaf is accepted before the first one leaves, and refused after its authority was revoked."""
    folder = tmp_path_factory.mktemp("s")
    words, pki = secret(folder / "words", "some words"), folder / "pki"
    done("init", "--dir", pki, "--trust-domain", "cluster.local", "--passphrase-file", words)
    file = write_settings(
        folder,
        f"""
ca: {{dir: {pki}, passphrase_file: {words}, rotation: {{overlap: 1s}}}}
require_peer_certificate: true
workers: {workers}
""",
    )
    (folder / "policies" / "role.yaml").write_text(role("[{}]"))

    def authority(*arguments: str, code: int = 0) -> Any:
        command = [*arguments, "--passphrase-file", str(words), "--json"]
        result = run("authority", command[0], "--dir", pki, *command[1:])
        assert result.exit_code == code, result.stderr
        return json.loads(result.stdout or "null")

    with serving("--config", str(file)) as server:
        ready = server.wait_for("ready")
        sockets = [one for one in ready["request"] if one.startswith("unix://")]
        asker = Asker(sockets, pki, words)
        first = asker.leaf()
        assert asker.codes(first) == {"role_matched"}
        assert 'garrison_ca_authorities{state="active"} 1.0' in page(ready["admin"], "/metrics")[1]

        made = authority("prepare", "--new-root")
        (place,) = [path.name for path in (pki / FOLDER).iterdir()]
        second = asker.leaf(f"{FOLDER}/{place}")
        eventually(lambda: asker.codes(second) == {"role_matched"}, "the new root")
        eventually(
            lambda: (
                run(
                    "authority", "activate", "--dir", pki, "--overlap", "1s", "--passphrase-file", words
                ).exit_code
                == 0
            ),
            "the end of the overlap",
        )
        third = asker.leaf()
        assert asker.codes(third) == asker.codes(second) == asker.codes(first) == {"role_matched"}

        old = authority("list")[0]["authority"]
        authority("taint", old)
        server.wait_for("authority tainted, everything is issued again")
        assert asker.codes(first) == {"role_matched"}
        authority("revoke", old, code=3)
        authority("revoke", old, "--now")
        eventually(lambda: asker.codes(first) == {"peer_certificate_invalid"}, "the end of the old root")
        assert asker.codes(third) == {"role_matched"}
        status, text = page(ready["admin"], "/healthz")
        assert status == 200
        assert f"authority {made['authority']} signs until" in text
        assert server.stop() == 0
