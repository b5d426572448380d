"""The command ``solo-attn``. Torch and Lightning are imported inside the commands that need them."""

# The commands register themselves when their modules are imported.
from . import (  # noqa: F401
    bench,
    compare,
    convert,
    demo,
    doctor,
    eval,
    export,
    inspect,
    predict,
    scenes,
    train,
)
from .app import app

__all__ = ["app"]
