"""mmdetection's SOLO head and ours: the same weights, features and objects, an image of 800 x 1344."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from solo_attn.bench import agree
from solo_attn.interop.mmdet.weights import own_name
from solo_attn.models import ModelSettings, SOLOHead
from solo_attn.models.candidates import points_nms
from solo_attn.models.heads import Head
from solo_attn.models.inference import boxes_of, predict
from solo_attn.models.losses import category_loss, mask_loss
from solo_attn.models.targets import BACKGROUND, MASK_STRIDES, assign

from .loading import peer

SIZE, IMAGE, ORIGINAL = (800, 1344), (800, 1333), (600, 1000)  # padded input, image in it, result
NUM_CLASSES, OBJECTS, CANDIDATES = 80, 12, 200
THREE = (1, 2, 3)  # levels of P3, P4 and P5
OPTIONS = ModelSettings()


def pyramid(levels: tuple[int, ...] = (0, 1, 2, 3, 4)) -> list[Tensor]:
    """P2..P6, smooth like features; the other levels' features are 0, so that they have no candidates."""
    generator = torch.Generator().manual_seed(0)
    maps = []
    for k, stride in enumerate((4, 8, 16, 32, 64)):
        height, width = -(-SIZE[0] // stride), -(-SIZE[1] // stride)
        coarse = torch.randn(1, 256, -(-height // 6), -(-width // 6), generator=generator)
        maps.append(F.interpolate(coarse, (height, width), mode="bilinear") * (k in levels))
    return maps


def same_weights() -> tuple[Any, Head]:
    """Their head and ours, with masks and candidates like a trained head's: see `set_candidates`."""
    torch.manual_seed(0)
    ours = SOLOHead(NUM_CLASSES, coords="inclusive", attention=None)
    with torch.no_grad():
        ours.category_output.weight.mul_(5)
        for output in ours.mask_outputs:
            output.weight.mul_(20)
            output.bias.fill_(-4.0)
    theirs = peer("mmdet.models.dense_heads").SOLOHead(
        num_classes=NUM_CLASSES,
        in_channels=256,
        feat_channels=256,
        stacked_convs=7,
        strides=(8, 8, 16, 32, 32),  # not its default, with which targets go wrong
        scale_ranges=OPTIONS.scale_ranges,
        num_grids=ours.num_grids,
        cls_down_index=0,
        loss_mask={
            "type": "DiceLoss",
            "use_sigmoid": True,
            "activate": True,
            "eps": 1e-3,
            "loss_weight": 3.0,
        },
        loss_cls={"type": "FocalLoss", "use_sigmoid": True, "gamma": 2.0, "alpha": 0.25, "loss_weight": 1.0},
        norm_cfg={"type": "GN", "num_groups": 32, "requires_grad": True},
        test_cfg=peer("mmengine.config").ConfigDict(
            score_thr=OPTIONS.score_threshold,
            mask_thr=OPTIONS.mask_threshold,
            nms_pre=OPTIONS.nms_pre,
            kernel=OPTIONS.nms_kernel,
            sigma=OPTIONS.nms_sigma,
            filter_thr=OPTIONS.final_score_threshold,
            max_per_img=OPTIONS.max_detections,
        ),
    )
    copy_weights(ours, theirs)
    return theirs, ours


def copy_weights(ours: Head, theirs: Any) -> None:
    """Copy the weights of ours to theirs, by the names that checkpoints are converted by."""
    own = ours.state_dict()
    names = {name: own_name(f"mask_head.{name}").removeprefix("head.") for name in theirs.state_dict()}
    theirs.load_state_dict({name: own[mine] for name, mine in names.items()})


@torch.no_grad()
def set_candidates(theirs: Any, ours: Head, features: list[Tensor], count: int = CANDIDATES) -> None:
    """Shift the category scores so that exactly ``count`` are above the threshold."""
    logits = ours(features).category_logits
    found = torch.cat([points_nms(x.double().sigmoid()).flatten() for x in logits])
    last, next_one = found.sort(descending=True).values[count - 1 : count + 1].logit().tolist()
    ours.category_output.bias += math.log(0.1 / 0.9) - (last + next_one) / 2
    copy_weights(ours, theirs)


def objects() -> tuple[Any, dict[str, Tensor]]:
    """Twelve objects from small to large, in mmdetection's form and in ours."""
    masks = torch.zeros(OBJECTS, *SIZE, dtype=torch.bool)
    for k in range(OBJECTS):
        height = int(36 * 1.26**k)  # 36 to 457 pixels: every level has some
        width = int(height * (0.8, 1.3, 1.0)[k % 3])
        top, left = (97 * k) % (IMAGE[0] - height + 1), (211 * k) % (IMAGE[1] - width + 1)
        y, x = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
        ellipse = y[:, None].square() + x[None, :].square() <= 1
        masks[k, top : top + height, left : left + width] = ellipse
    target = {"boxes": boxes_of(masks), "labels": torch.arange(OBJECTS) * 5, "masks": masks}
    theirs = peer("mmengine.structures").InstanceData(
        bboxes=target["boxes"],
        labels=target["labels"],
        masks=peer("mmdet.structures.mask").BitmapMasks(masks.byte().numpy(), *SIZE),
    )
    return theirs, target


META = {"img_shape": IMAGE, "ori_shape": ORIGINAL, "pad_shape": SIZE, "batch_input_shape": SIZE}


@torch.no_grad()
def predict_theirs(head: Any, features: list[Tensor]) -> Any:
    """Scores, labels and masks, by mmdetection."""
    head.eval()
    found = head.predict_by_feat(*head(tuple(features)), [META])[0]
    return found.scores, found.labels, found.masks


@torch.no_grad()
def predict_ours(head: Head, features: list[Tensor]) -> Any:
    """The same by our head."""
    found = predict(head, head(features), [IMAGE], [ORIGINAL], OPTIONS)[0]
    return found["scores"], found["labels"], found["masks"]


def _step(head: torch.nn.Module, features: list[Tensor], losses: list[Tensor]) -> list[Tensor]:
    """Backward; the losses, and the gradients of the features."""
    sum(losses).backward()  # type: ignore[union-attr]
    grads = [x.grad for x in features]
    for x in (*features, *head.parameters()):
        x.grad = None
    return [*(loss.detach() for loss in losses), *grads]  # type: ignore[list-item]


def train_theirs(head: Any, features: list[Tensor], instances: Any) -> list[Tensor]:
    """Forward, targets, loss and backward of one image by mmdetection."""
    head.train()
    losses = head.loss_by_feat(*head(tuple(features)), [instances], [META])
    return _step(head, features, [losses["loss_cls"], losses["loss_mask"]])


def train_ours(head: Head, features: list[Tensor], target: dict[str, Tensor]) -> list[Tensor]:
    """The same by our head."""
    result = head(features)
    assigned = assign(
        [target],
        SIZE,
        head.num_grids,
        OPTIONS.scale_ranges,
        head.mask_strides,
        shared_cells=head.shared_cells,
    )
    losses = [category_loss(result.category_logits, assigned), mask_loss(head, result, assigned, 3.0)]
    return _step(head, features, losses)


def targets_theirs(head: Any, instances: Any) -> Any:
    """Targets of one image by mmdetection."""
    sizes = [(SIZE[0] // stride, SIZE[1] // stride) for stride in MASK_STRIDES]
    return head._get_targets_single(instances, featmap_sizes=sizes)


def targets_agree(ours: Any, theirs: Any) -> None:
    """The same cells, labels and pixels."""
    for level, masks, labels, positive in zip(ours, *theirs, strict=True):
        assert torch.equal(level.cells[:, 1], positive.nonzero().squeeze(1))
        assert torch.equal(level.masks, masks.bool())
        expected = torch.where(labels == NUM_CLASSES, BACKGROUND, labels)
        assert torch.equal(level.labels[0], expected)


def predictions_agree(ours: Any, theirs: Any) -> None:
    """Check that the instances are the same; two whose scores differ by rounding may be swapped."""
    agree(ours[0], theirs[0])
    assert len(ours[0]) > 20, "too few instances to mean anything"
    same = ours[1] == theirs[1]
    assert same.float().mean() > 0.95
    wrong = (ours[2][same] != theirs[2][same]).flatten(1).float().mean(1)
    assert (wrong < 1e-3).float().mean() > 0.95, wrong
