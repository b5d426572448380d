"""The numbers a run can be made of: others would fail later and less clearly, or train nothing in silence."""

from __future__ import annotations

from typing import Any

# As one writes intervals; null is always allowed where the type allows it. What varies the images is checked
# by `train_transforms`, what makes the model by `build_solo`: both are called without a configuration too.
_INTERVALS = {
    "data.workers": "[0, inf)",
    "train.epochs": "[1, inf)",
    "train.max_steps": "[1, inf)",
    "train.max_minutes": "(0, inf)",
    "train.batch_size": "[1, inf)",
    "train.accumulate": "[1, inf)",
    "train.eval_batch_size": "[1, inf)",
    "train.eval_max_detections": "[10, inf)",
    "train.eval_every": "[1, inf)",
    "train.learning_rate": "(0, inf)",
    "train.base_batch": "[1, inf)",
    "train.momentum": "[0, 1)",
    "train.weight_decay": "[0, inf)",
    "train.warmup_steps": "[0, inf)",
    "train.warmup_ratio": "(0, 1]",
    "train.milestones": "(0, 1)",  # each of them
    "train.gamma": "(0, 1]",
    "train.clip_norm": "(0, inf)",
    "train.devices": "[1, inf)",
    "train.checkpoint_steps": "[1, inf)",
    "train.log_every": "[1, inf)",
    "train.seed": "[0, 4294967295]",  # NumPy's seeds have 32 bits
}


def faults(values: dict[str, dict[str, Any]]) -> list[str]:
    """What is wrong with the numbers of `Config.as_dict`: a phrase for each."""
    found = []
    for key, interval in _INTERVALS.items():
        section, name = key.split(".")
        value = values[section][name]
        if value is None:
            continue
        several = isinstance(value, list)
        if not all(_inside(number, interval) for number in (value if several else [value])):
            found.append(f"{key} to be {'numbers ' if several else ''}{_words(interval)}, got {value}")
    return found


def _bounds(interval: str) -> tuple[str, str]:
    low, high = interval[1:-1].split(", ")
    return low, high


def _inside(number: float, interval: str) -> bool:
    low, high = map(float, _bounds(interval))
    above = number >= low if interval[0] == "[" else number > low
    below = number <= high if interval[-1] == "]" else number < high
    return above and below  # NaN is neither


def _words(interval: str) -> str:
    low, high = _bounds(interval)
    if high != "inf":
        return f"in {interval}"
    return f"{'at least' if interval[0] == '[' else 'above'} {low}"
