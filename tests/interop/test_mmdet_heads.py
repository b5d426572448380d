"""Each head of the SOLO family, converted, against mmdetection's own: predictions, losses, gradients."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.peers.loading import need

need("mmdet")

from mmdet_models import (  # noqa: E402
    DCN,
    FEATURES,
    SMALL,
    agree,
    compare_gradients,
    config,
    deform_by_torchvision,
    detector,
    objects,
    ours_of,
    photo,
    same_pixels,
    save,
    theirs,
    training_losses,
)

from solo_attn.interop.mmdet import convert_checkpoint  # noqa: E402
from solo_attn.models import load_model  # noqa: E402

BACKBONE = {"dcn": {**DCN, "deform_groups": 1}, "stage_with_dcn": (False, True, True, True)}
# kind, depth, what the head has beside it, whether the backbone is deformable too
CASES: dict[str, tuple[str, int, dict[str, Any], bool]] = {
    "decoupled": ("decoupled", 18, {}, False),
    "decoupled_light": ("decoupled_light", 34, {}, False),
    "decoupled_light, DCN": ("decoupled_light", 18, {"dcn_cfg": DCN}, False),
    "solov2": ("solov2", 18, {}, False),
    "solov2_light": ("solov2_light", 18, {}, False),
    "solov2_light, DCN": ("solov2_light", 50, {"dcn_cfg": DCN, "dcn_apply_to_all_conv": False}, True),
    "solov2, DCN": ("solov2", 18, {"dcn_cfg": DCN, "dcn_apply_to_all_conv": True}, False),
    "solov2, DCN everywhere": (
        "solov2",
        101,
        {"dcn_cfg": DCN, "mask_feature_head": {**FEATURES, "conv_cfg": DCN}},
        True,
    ),
}
SLOW = ("solov2_light, DCN", "solov2, DCN everywhere")

# Names of the same parameter, for those of the heads that have it: below the head, and in it.
SHARED = {
    "backbone.layer2.0.conv1.weight": "backbone.body.layer2.0.conv1.weight",
    "backbone.layer3.1.conv2.conv_offset.weight": "backbone.body.layer3.1.conv2.conv_offset.weight",
    "neck.lateral_convs.0.conv.weight": "backbone.fpn.inner_blocks.0.0.weight",
}
OF_HEADS = {
    "cls_convs.1.gn.weight": "category_tower.4.weight",
    "cls_convs.1.conv.conv_offset.bias": "category_tower.3.conv_offset.bias",
    "conv_cls.bias": "category_output.bias",
    "mask_convs_x.0.conv.weight": "column_tower.0.weight",
    "mask_convs_y.1.gn.bias": "row_tower.4.bias",
    "mask_convs.0.conv.weight": "mask_tower.0.weight",
    "conv_mask_list_x.2.weight": "column_outputs.2.weight",
    "conv_mask_list_y.0.bias": "row_outputs.0.bias",
    "kernel_convs.0.conv.weight": "kernel_tower.0.weight",
    "conv_kernel.weight": "kernel_output.weight",
    "mask_feature_head.convs_all_levels.0.conv0.gn.weight": "mask_features.levels.0.0.1.weight",
    "mask_feature_head.convs_all_levels.2.conv1.conv.weight": "mask_features.levels.2.1.0.weight",
    "mask_feature_head.convs_all_levels.3.conv0.conv.weight": "mask_features.levels.3.0.0.weight",
    "mask_feature_head.conv_pred.conv.weight": "mask_features.output.0.weight",
    "mask_feature_head.conv_pred.conv.conv_offset.bias": "mask_features.output.0.conv_offset.bias",
}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CASES],
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The case's name, mmdetection's detector, and ours of its file."""
    kind, depth, head, backbone = CASES[request.param]
    with pytest.MonkeyPatch.context() as patch:
        deform_by_torchvision(patch)
        settings = config(depth, kind=kind, **{**SMALL, "stacked_convs": 2})
        settings.model.mask_head.update(head)
        if backbone:
            settings.model.backbone.update(BACKBONE)
        model = detector(settings)
        path = save(model, settings, tmp_path_factory.mktemp("mmdet") / "epoch_3.pth")
        out = Path(path).with_name("converted.ckpt")
        done = convert_checkpoint(path, out)
        assert done.notes == []
        assert done.info.model["head"] == kind
        assert done.info.model["deformable_backbone"] == backbone
        yield request.param, model, load_model(out)[0]


def test_the_whole_prediction(pair) -> None:
    _, model, ours = pair
    image = photo(0)
    agree(*ours_of(ours, 255 * same_pixels(model, ours, image)), *theirs(model, image))


def test_losses_and_gradients(pair) -> None:
    case, model, ours = pair
    model, ours = (copy.deepcopy(x).double().train() for x in (model, ours))
    image, target = photo(0), objects(0)
    # Two objects in one place: they want the same cells, of which the later one has the label.
    target = {key: torch.cat([x, x[2:4]]) for key, x in target.items()}
    target["masks"][-1, :, : target["masks"].shape[2] // 2] = 0
    target["labels"][-2:] = (target["labels"][-2:] + 1) % 5
    expected = training_losses(model, image, target, torch.float64)
    found = ours([same_pixels(model, ours, image)], [target])
    assert float(expected["loss_mask"].detach()) > 0.5, "objects that some cell is responsible for"
    for name, their_name in (("loss_mask", "loss_mask"), ("loss_category", "loss_cls")):
        torch.testing.assert_close(found[name], expected[their_name], rtol=0, atol=1e-4)
    sum(expected.values()).backward()
    sum(found.values()).backward()
    names = SHARED | {f"mask_head.{name}": f"head.{ours}" for name, ours in OF_HEADS.items()}
    have = dict(model.named_parameters())
    names = {name: mine for name, mine in names.items() if name in have}
    assert len(names) >= 7, case
    compare_gradients(model, ours, names)
