"""The command ``solo-attn``, as the tests run it."""

from __future__ import annotations

from typer.testing import CliRunner

from solo_attn.cli import app


def run(*arguments: object, **environment: str) -> tuple[int, str]:
    """Exit code and output, on a wide terminal; what the command itself does not report is raised."""
    settings = {"COLUMNS": "200", "SOLO_ATTN_DEBUG": None, **environment}
    result = CliRunner().invoke(app, [str(a) for a in arguments], env=settings)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output
