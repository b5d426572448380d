"""The ops in Triton, each function with the name and signature of the one in `solo_attn.reference`.

Installed as ``solo_attn.kernels``. Importing ``solo_attn`` imports none of it: `solo_attn.ops` does so when
an op first runs on the backend ``triton``.
"""

from ._launch import traced

__all__ = ["traced"]
