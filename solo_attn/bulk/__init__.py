"""Many images: in batches, by several processes or machines, in pieces from which a killed run resumes."""

from .._utils.errors import extra_needed

with extra_needed("solo_attn.bulk"):
    from .files import Format, find_images, output_paths
    from .pieces import Pieces, Shard
    from .run import Outcome, predict_files

__all__ = ["Format", "Outcome", "Pieces", "Shard", "find_images", "output_paths", "predict_files"]
