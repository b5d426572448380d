"""COCO's numbers, the paper's tables, and pictures; needs the extra "train"."""

from .._utils.errors import extra_needed

with extra_needed("solo_attn.evaluation"):
    from .coco_metrics import METRICS, CocoMetrics, evaluate, evaluate_model
    from .curves import learning_curve
    from .errors import ErrorReport, find_errors
    from .pictures import draw_instances, found_beside_truth, instance_colours, side_by_side
    from .report import write_comparison_report, write_report
    from .tables import SYSTEMS, comparison_plot, paper_table3, paper_table4, rich_table, summary_json

__all__ = [
    "METRICS",
    "SYSTEMS",
    "CocoMetrics",
    "ErrorReport",
    "comparison_plot",
    "draw_instances",
    "evaluate",
    "evaluate_model",
    "find_errors",
    "found_beside_truth",
    "instance_colours",
    "learning_curve",
    "paper_table3",
    "paper_table4",
    "rich_table",
    "side_by_side",
    "summary_json",
    "write_comparison_report",
    "write_report",
]
