"""Pictures of the masks that trained models predict: of nuclei, and on README's photograph.

    python -m benchmarks.report.pictures runs/nuclei/last.ckpt PHOTO.png --photograph "who made it, licence"

writes ``docs/images/hero.png`` and ``benchmarks/results/cpu/hero.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import pycocotools.mask as coco_mask
import torch
import torch.nn.functional as F
import typer
from torchvision.io import write_png
from torchvision.ops import box_convert
from torchvision.transforms.functional import resize
from torchvision.utils import make_grid

from solo_attn._utils.environment import environment
from solo_attn.data import read_image
from solo_attn.evaluation import draw_instances
from solo_attn.models import load_model

from . import stored
from .stored import CPU


def draw_found(path: Path) -> None:
    """The masks alone, without the photographs, which belong to their dataset."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for result in stored.kept("nuclei_found"):
        rows.setdefault(result["file_name"], []).append(result)
    pictures = []
    for results in rows.values():
        masks = torch.from_numpy(coco_mask.decode([r["segmentation"] for r in results])).permute(2, 0, 1)
        found = {
            "masks": masks,
            "boxes": box_convert(torch.tensor([r["bbox"] for r in results]), "xywh", "xyxy"),
            "labels": torch.zeros(len(results), dtype=torch.int64),
        }
        picture = draw_instances(torch.zeros(3, *masks.shape[1:]), found, ["nucleus"], alpha=0.8)
        pictures.append(resize(picture, [320]))
    height, width = (max(p.shape[k] for p in pictures) for k in (1, 2))
    padded = [F.pad(p, (0, width - p.shape[2], 0, height - p.shape[1])) for p in pictures]
    write_png(make_grid(padded, nrow=len(padded), pad_value=255), str(path))


def hero(
    checkpoint: Annotated[Path, typer.Argument(help="Of a trained model.")],
    photo: Annotated[Path, typer.Argument(help="A photograph that may lie in this repository.")],
    photograph: Annotated[str, typer.Option(help="Who made it and under which licence, for README.")],
    score: Annotated[float, typer.Option(help="Instances are drawn from this score on.")] = 0.3,
) -> None:
    """The photograph, and beside it the same with its instances."""
    model, info = load_model(checkpoint)
    image = read_image(photo)
    with torch.no_grad():
        found = model([image / 255])[0]
    pair = [image, draw_instances(image, found, info.class_names, score_threshold=score)]
    write_png(make_grid(pair, nrow=2, padding=4, pad_value=255), str(stored.IMAGES / "hero.png"))
    told = {
        "instances": int((found["scores"] >= score).sum()),
        "score": score,
        "photograph": photograph,
        "model": model.config,
        "environment": environment(),
    }
    (stored.RESULTS / CPU / "hero.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(hero)
