"""The `garrison` command: each subcommand lives with what it drives and is imported when it is called."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

import click
from click.shell_completion import get_completion_class

if TYPE_CHECKING:
    from garrison.documents import Diagnostic, Document

_COMMANDS = {
    "serve": ("garrison.process.cli", "serve"),
    "check": ("authz.tools.check", "check"),
    "eval": ("authz.tools.check", "evaluate_lines"),
    "lint": ("authz.tools.lint", "lint"),
    "test": ("authz.tools.test", "run_suites"),
    "diff": ("authz.tools.diff", "diff"),
    "can": ("authz.tools.can", "can"),
    "new": ("authz.tools.new", "new"),
    "schema": ("authz.tools.schema", "print_schema"),
    "completion": ("garrison.cli", "completion"),
    "ratelimit": ("ratelimit.cli", "ratelimit"),
    "credentials": ("authz.tools.credentials", "credentials"),
    "policies": ("garrison.process.policies", "policies"),
    "ca": ("ca.cli", "ca"),
    "demo": ("garrison.demo.cli", "demo"),
    "envoy-config": ("garrison.envoy_config", "envoy_config"),
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name]
        if cmd_name == "serve":
            # Read when gRPC is imported. What we fork becomes another program at once: that needs none of
            # gRPC's care, nor its notices among our log lines.
            os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
        command = getattr(import_module(module), name)
        if cmd_name == "lint":
            _lint_others_too()
        assert isinstance(command, click.Command)  # noqa: S101 - the table above is ours
        return command


def _lint_others_too() -> None:
    """Let `lint` understand rate-limit files and Envoy's own; `authz` knows only policies."""
    policies, limits = import_module("authz.tools.lint"), import_module("ratelimit.compile")
    envoy = import_module("garrison.envoy_lint")
    if not policies.other_linters:
        for is_theirs, lint in ((limits.is_limits, limits.lint), (envoy.is_envoy, envoy.lint)):
            policies.other_linters.append(_linter(is_theirs, lint))
        policies.cross_linters.append(import_module("garrison.limit_lint").lint)


def _linter(
    is_theirs: Callable[[Document], bool], lint: Callable[[list[Document]], list[Diagnostic]]
) -> Callable[[list[Document]], tuple[list[Document], list[Diagnostic]]]:
    def other(documents: list[Document]) -> tuple[list[Document], list[Diagnostic]]:
        theirs = [document for document in documents if is_theirs(document)]
        return [document for document in documents if not is_theirs(document)], lint(theirs)

    return other


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExample:\n  garrison serve --config garrison.yaml",
)
@click.version_option(package_name="garrison", prog_name="garrison")
def main() -> None:
    """Policy decisions, quotas and identities for Envoy."""


@click.command(
    epilog="""\b
Example:
  garrison completion bash > ~/.local/share/bash-completion/completions/garrison
  garrison completion zsh > "${fpath[1]}/_garrison"
  garrison completion fish > ~/.config/fish/completions/garrison.fish"""
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands and options in SHELL."""
    found = get_completion_class(shell)
    assert found is not None  # noqa: S101 - click knows these three
    script = found(main, {}, "garrison", "_GARRISON_COMPLETE")
    # Not `source()`: it runs the shell to complain about versions that are too old.
    click.echo(script.source_template % script.source_vars())
