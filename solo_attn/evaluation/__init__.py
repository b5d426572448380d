"""COCO's numbers, the paper's tables, and pictures; needs the extra "train"."""

try:
    from .coco_metrics import METRICS, CocoMetrics, coco_results, evaluate, write_results
    from .curves import learning_curve
    from .pictures import draw_instances, instance_colours, side_by_side
    from .tables import SYSTEMS, comparison_plot, paper_table3, paper_table4, rich_table, summary_json
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("pycocotools", "matplotlib", "PIL"):
        raise
    raise ImportError(
        f'solo_attn.evaluation: expected {error.name} to be installed; run: pip install "solo-attn[train]"'
    ) from error

__all__ = [
    "METRICS",
    "SYSTEMS",
    "CocoMetrics",
    "coco_results",
    "comparison_plot",
    "draw_instances",
    "evaluate",
    "instance_colours",
    "learning_curve",
    "paper_table3",
    "paper_table4",
    "rich_table",
    "side_by_side",
    "summary_json",
    "write_results",
]
