"""What the policy commands share: options, exit codes, loading."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from authz.authn.peers import FederatedDomain
from authz.paths import PathNormalization
from authz.policy.compile import MeshSettings
from authz.snapshot import Snapshot, load_snapshot
from garrison.errors import ConfigError
from garrison.identity import TrustDomain

# 0: allowed, or nothing found. 1: denied, or something found. 2: what was given cannot be used.
OK, FOUND, FAILED = 0, 1, 2

Command = TypeVar("Command", bound=Callable[..., Any])


class _TrustDomainType(click.ParamType[TrustDomain]):
    name = "trust domain"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> TrustDomain:
        try:
            return value if isinstance(value, TrustDomain) else TrustDomain.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _FederatedType(click.ParamType[FederatedDomain]):
    name = "domain[=namespace]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> FederatedDomain:
        try:
            return value if isinstance(value, FederatedDomain) else FederatedDomain.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _NamespaceMode(click.ParamType[tuple[str, PathNormalization]]):
    name = "namespace=mode"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, PathNormalization]:
        if isinstance(value, tuple):
            return value
        namespace, _, mode = value.partition("=")
        if not namespace or mode not in set(PathNormalization):
            known = ", ".join(PathNormalization)
            self.fail(f"`{value}` is not NAMESPACE=MODE; modes: {known}", param, ctx)
        return namespace, PathNormalization(mode)


def mesh_options(command: Command) -> Command:
    """Add the options that say how policies read: trust domains, root namespace, path normalisation."""
    for option in reversed(
        [
            click.option(
                "--trust-domain", type=_TrustDomainType(), default="cluster.local", show_default=True
            ),
            click.option("--trust-domain-alias", type=_TrustDomainType(), multiple=True, help="repeatable"),
            click.option(
                "--federated-trust-domain",
                type=_FederatedType(),
                multiple=True,
                help="whose peers may call, too, everywhere or in one namespace; repeatable",
            ),
            click.option("--root-namespace", default="istio-system", show_default=True),
            click.option(
                "--path-normalization",
                type=click.Choice([mode.value for mode in PathNormalization]),
                default=PathNormalization.BASE.value,
                show_default=True,
            ),
            click.option(
                "--namespace-path-normalization",
                type=_NamespaceMode(),
                multiple=True,
                help="NAMESPACE=MODE, where it differs; repeatable",
            ),
        ]
    ):
        command = option(command)
    return command


def mesh_of(options: dict[str, Any]) -> MeshSettings:
    """Return what the mesh options say."""
    return MeshSettings(
        options["trust_domain"],
        tuple(options["trust_domain_alias"]),
        options["root_namespace"],
        PathNormalization(options["path_normalization"]),
        tuple(options["namespace_path_normalization"]),
        federated_trust_domains=tuple(sorted(set(options["federated_trust_domain"]))),
    )


policies_option = click.option(
    "--policies",
    "policies",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="policy file or folder; repeatable",
)


def snapshot_of(paths: Sequence[Path], mesh: MeshSettings) -> Snapshot:
    """Return the snapshot of `paths`; end the process with all problems on stderr if there is none."""
    try:
        return load_snapshot(paths, mesh)
    except ConfigError as error:
        fail(str(error))


def one_line(error: BaseException) -> str:
    """Return what went wrong, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def fail(message: str) -> NoReturn:
    """End the process with `message` on stderr and exit code 2."""
    click.echo(f"error: {message}", err=True)
    sys.exit(FAILED)
