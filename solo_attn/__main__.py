"""The command ``solo-attn``, also as ``python -m solo_attn``."""

from __future__ import annotations

import sys

from ._utils.errors import MissingExtraError, extra_needed


def main() -> None:
    """Entry point of the console script: its packages may be missing, the ops do not need them."""
    try:
        with extra_needed("solo-attn"):
            from .cli import app
    except MissingExtraError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    app(prog_name="solo-attn")


if __name__ == "__main__":
    main()
