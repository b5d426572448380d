import sys

import pytest
import torch
from torch import nn
from torchvision.models import resnet

from solo_attn._utils.errors import MissingExtraError
from solo_attn.models import build_backbone, build_solo
from solo_attn.models.backbone import image_statistics

FIVE_LEVELS = [(1, 48, 32, 24), (1, 48, 16, 12), (1, 48, 8, 6), (1, 48, 4, 3), (1, 48, 2, 2)]


def pyramid(height, width, **settings):
    """Levels of an image [3, height, width], without computing them."""
    with torch.device("meta"):
        return build_backbone(**settings)(torch.empty(1, 3, height, width))


def test_sizes_of_table_1():
    levels = pyramid(672, 1344)
    sizes = [tuple(level.shape[1:]) for level in levels.values()]
    assert sizes == [(256, 168, 336), (256, 84, 168), (256, 42, 84), (256, 21, 42), (256, 11, 21)]


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_five_levels_of_any_resnet(name):
    levels = pyramid(128, 96, name=name, out_channels=48)
    assert [tuple(x.shape) for x in levels.values()] == FIVE_LEVELS


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "convnext_atto", "repvgg_a0"])
def test_five_levels_of_timm(name):
    """Some give a map of stride 2 besides, some join the names of parts by "_"."""
    pytest.importorskip("timm", reason='the extra "pretrained" is not installed')
    levels = build_backbone(f"timm/{name}", out_channels=48)(torch.rand(1, 3, 128, 96))
    assert [tuple(x.shape) for x in levels.values()] == FIVE_LEVELS


def test_p6_is_every_second_pixel_of_p5():
    torch.manual_seed(0)
    levels = list(build_backbone("resnet18", out_channels=8)(torch.rand(1, 3, 96, 160)).values())
    assert torch.equal(levels[4], levels[3][:, :, ::2, ::2])


@pytest.mark.parametrize(
    ("norm", "kind"),
    [("frozen_bn", "FrozenBatchNorm2d"), ("bn", "BatchNorm2d"), ("gn", "GroupNorm")],
)
def test_norms(norm, kind):
    backbone = build_backbone("resnet18", norm=norm)
    kinds = {type(m).__name__ for m in backbone.body.modules() if "Norm" in type(m).__name__}
    assert kinds == {kind}
    if norm == "gn":
        assert {m.num_groups for m in backbone.modules() if isinstance(m, nn.GroupNorm)} == {32}


def test_pretrained_freezes_the_stem_and_the_first_stage(monkeypatch):
    build, asked = resnet.resnet18, []

    def without_download(*, weights, **settings):
        asked.append(weights)
        return build(weights=None, **settings)

    monkeypatch.setattr(resnet, "resnet18", without_download)
    frozen = {
        name.split(".")[1]
        for name, p in build_backbone("resnet18", norm="bn", pretrained=True).named_parameters()
        if not p.requires_grad
    }
    assert frozen == {"conv1", "bn1", "layer1"}
    assert asked == ["DEFAULT"]
    assert all(p.requires_grad for p in build_backbone("resnet18", norm="bn").parameters())
    assert asked[1:] == [None]


FREEZABLE = ["resnet18", "timm/tf_efficientnet_lite0", "timm/convnext_atto"]


@pytest.mark.parametrize("name", FREEZABLE)
@pytest.mark.parametrize("freeze", [0, 1, 2, 3, 4, 5])
def test_a_frozen_stage_is_all_that_its_map_is_made_of(name, freeze):
    """By the graph: what a map of stride 2^k depends on is in stages 1 to k, and nothing else is."""
    if name.startswith("timm/"):
        pytest.importorskip("timm", reason='the extra "pretrained" is not installed')
    parameters = list(build_backbone(name, freeze=freeze, out_channels=8).body.parameters())
    frozen = [not p.requires_grad for p in parameters]
    open_backbone = build_backbone(name, out_channels=8)
    weights = list(open_backbone.body.parameters())
    maps = open_backbone.features(torch.rand(1, 3, 64, 64))

    def made_of(stride):
        return [
            g is not None
            for g in torch.autograd.grad(
                maps[stride - 2].sum(), weights, allow_unused=True, retain_graph=True
            )
        ]

    if freeze == 0:
        assert not any(frozen)
    elif freeze == 1:  # the stem makes a part of the first map
        assert any(frozen)
        assert sum(frozen) < sum(made_of(2))
        assert all(made for made, still in zip(made_of(2), frozen, strict=True) if still)
    else:
        assert frozen == made_of(freeze)


@pytest.mark.parametrize("freeze", [3, "all"])
def test_frozen_batch_norms_keep_their_statistics(freeze):
    backbone = build_backbone("resnet18", norm="bn", freeze=freeze, out_channels=8).train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    backbone(torch.rand(2, 3, 64, 64))
    changed = {k.split(".")[1] for k, v in backbone.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == ({"layer3", "layer4"} if freeze == 3 else set())
    assert backbone.eval().train().body.layer1.training is False
    assert backbone.fpn.training


def test_maps_of_a_frozen_body_have_no_graph():
    images = torch.rand(1, 3, 64, 64)
    backbone = build_backbone("resnet18", norm="bn", freeze="all", out_channels=8)
    kept = backbone.features(images)
    assert not any(feature.requires_grad for feature in kept)
    for level, again in zip(backbone(images).values(), backbone.pyramid(kept).values(), strict=True):
        assert level.requires_grad
        assert torch.equal(level, again)
    assert all(x.requires_grad for x in build_backbone("resnet18", out_channels=8).features(images))


def test_norms_of_timm():
    pytest.importorskip("timm", reason='the extra "pretrained" is not installed')
    for norm, kind in (("bn", "BatchNormAct2d"), ("frozen_bn", "FrozenBatchNormAct2d")):
        backbone = build_backbone("timm/tf_efficientnet_lite0", norm=norm, out_channels=8)
        assert {type(m).__name__ for m in backbone.body.modules() if "Norm" in type(m).__name__} == {kind}


def test_the_model_takes_the_statistics_of_the_weights():
    """EfficientNet-Lite was trained on images of mean and deviation 0.5."""
    pytest.importorskip("timm", reason='the extra "pretrained" is not installed')
    assert image_statistics("resnet50") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    small = {"fpn_channels": 32, "head_channels": 32, "num_convs": 1}
    model = build_solo(2, backbone="timm/tf_efficientnet_lite0", **small)
    assert (model.transform.image_mean, model.transform.image_std) == ([0.5] * 3, [0.5] * 3)
    assert build_solo(**model.config).config == model.config
    own = build_solo(2, backbone="timm/tf_efficientnet_lite0", image_mean=[0.1, 0.2, 0.3], **small)
    assert own.transform.image_mean == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "vgg16"}, "expected backbone to be one of resnet18, .* or 'timm/<name>', got 'vgg16'"),
        ({"norm": "ln"}, "expected norm to be one of frozen_bn, bn, gn, got 'ln'"),
        ({"norm": "gn", "pretrained": True}, "expected norm to be 'frozen_bn' or 'bn' with pretrained=True"),
        ({"freeze": 6}, "expected freeze to be 0..5 or 'all', got 6"),
        ({"freeze": "some"}, "expected freeze to be 0..5 or 'all', got 'some'"),
        ({"pretrained": None}, "expected pretrained to be a bool, 'package' or a file, got None"),
        ({"pretrained": "package"}, "expected pretrained to be False, True or a file with a ResNet"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(ValueError, match=f"build_backbone: {message}"):
        build_backbone(**{"name": "resnet18", **settings})


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("nonsense", {}, "one of timm.list_models\\(\\) after 'timm/', got 'timm/nonsense'"),
        (
            "vit_tiny_patch16_224",
            {},
            "one with maps of strides 4, 8, 16 and 32, got .* with \\[16, 16, 16\\]",
        ),
        ("swin_tiny_patch4_window7_224", {}, "one with maps \\[B, C, h, w\\], got .* with \\[B, h, w, C\\]"),
        ("resnet18", {"norm": "gn"}, "'frozen_bn' or 'bn' with a backbone of timm, got 'gn'"),
        ("hrnet_w18_small", {"freeze": 2}, "0 or 'all' with a backbone whose stages are not parts of it"),
    ],
)
def test_errors_of_timm(name, settings, message):
    pytest.importorskip("timm", reason='the extra "pretrained" is not installed')
    with pytest.raises(ValueError, match=f"build_backbone: expected .* to be {message}"):
        build_backbone(f"timm/{name}", **settings)


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    message = r"^build_backbone: expected timm to be installed; run in the clone: "
    message += r'pip install -e "\.\[pretrained\]"$'
    with pytest.raises(MissingExtraError, match=message):
        build_backbone("timm/resnet18")
