import pytest
import torch
from torch import nn
from torchvision.models import resnet

from solo_attn.models import resnet_fpn


def pyramid(height, width, **settings):
    """Levels of an image [3, height, width], without computing them."""
    with torch.device("meta"):
        return resnet_fpn(**settings)(torch.empty(1, 3, height, width))


def test_sizes_of_table_1():
    levels = pyramid(672, 1344)
    sizes = [tuple(level.shape[1:]) for level in levels.values()]
    assert sizes == [(256, 168, 336), (256, 84, 168), (256, 42, 84), (256, 21, 42), (256, 11, 21)]


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_five_levels_of_any_resnet(name):
    levels = pyramid(128, 96, name=name, out_channels=48)
    assert [tuple(x.shape) for x in levels.values()] == [
        (1, 48, 32, 24),
        (1, 48, 16, 12),
        (1, 48, 8, 6),
        (1, 48, 4, 3),
        (1, 48, 2, 2),
    ]


def test_p6_is_every_second_pixel_of_p5():
    torch.manual_seed(0)
    levels = list(resnet_fpn("resnet18", out_channels=8)(torch.rand(1, 3, 96, 160)).values())
    assert torch.equal(levels[4], levels[3][:, :, ::2, ::2])


@pytest.mark.parametrize(
    ("norm", "kind"),
    [("frozen_bn", "FrozenBatchNorm2d"), ("bn", "BatchNorm2d"), ("gn", "GroupNorm")],
)
def test_norms(norm, kind):
    backbone = resnet_fpn("resnet18", norm=norm)
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
        for name, p in resnet_fpn("resnet18", norm="bn", pretrained=True).named_parameters()
        if not p.requires_grad
    }
    assert frozen == {"conv1", "bn1", "layer1"}
    assert asked == ["DEFAULT"]
    assert all(p.requires_grad for p in resnet_fpn("resnet18", norm="bn").parameters())
    assert asked[1:] == [None]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "vgg16"}, "resnet_fpn: expected backbone to be one of resnet18, .*got 'vgg16'"),
        ({"norm": "ln"}, "resnet_fpn: expected norm to be one of frozen_bn, bn, gn, got 'ln'"),
        ({"norm": "gn", "pretrained": True}, "expected norm 'frozen_bn' or 'bn' with pretrained=True"),
    ],
)
def test_errors(settings, message):
    with pytest.raises(ValueError, match=message):
        resnet_fpn(**settings)
