"""The `garrison` command: each subcommand lives with what it drives and is imported when it is called."""

from __future__ import annotations

from importlib import import_module

import click

_COMMANDS = {
    "serve": ("garrison.process.cli", "serve"),
    "check": ("authz.tools.check", "check"),
    "eval": ("authz.tools.check", "evaluate_lines"),
    "lint": ("authz.tools.lint", "lint"),
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
