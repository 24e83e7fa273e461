"""The `garrison` command: each subcommand lives with what it drives and is imported when it is called."""

from __future__ import annotations

import os
from importlib import import_module

import click
from click.shell_completion import get_completion_class

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
            _lint_limits_too()
        assert isinstance(command, click.Command)  # noqa: S101 - the table above is ours
        return command


def _lint_limits_too() -> None:
    """Let `lint` understand rate-limit files; `authz` and `ratelimit` do not know each other."""
    policies, limits = import_module("authz.tools.lint"), import_module("ratelimit.compile")
    if not policies.other_linters:
        policies.other_linters.append(
            lambda documents: (
                [document for document in documents if not limits.is_limits(document)],
                limits.lint([document for document in documents if limits.is_limits(document)]),
            )
        )


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
