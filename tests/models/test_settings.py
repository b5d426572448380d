"""Settings and input that cannot work are refused when the model is made or called, not an epoch later."""

import pytest
import torch
from small_solo import batch, small

from solo_attn.models import ModelSettings, build_solo, solo


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("score_threshold", 1.5),
        ("score_threshold", float("nan")),
        ("mask_threshold", 1.0),
        ("mask_threshold", 0.0),
        ("nms_pre", 0),
        ("nms_kernel", "boxes"),
        ("nms_sigma", 0.0),
        ("nms_sigma", float("inf")),
        ("final_score_threshold", -0.1),
        ("max_detections", -5),
    ],
)
def test_inference_settings(name, value):
    with pytest.raises(ValueError, match=f"build_solo: expected {name} to be .*, got {value!r}"):
        build_solo(3, **{name: value})


def test_each_setting_says_what_it_is():
    for name, field in ModelSettings.model_fields.items():
        assert field.description, name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fpn_channels", 0),
        ("min_size", 0),
        ("min_size", [64, 0]),
        ("min_size", []),
        ("min_size", 64.0),
        ("min_size", [64, 64.5]),
        ("min_size", "64"),
        ("min_size", None),
        ("max_size", 100),
        ("max_size", 1333.5),
        ("min_size", [1, -1]),
        ("max_size", None),
        ("image_mean", [0.5]),
        ("image_mean", [0.5, 0.5, float("nan")]),
        ("image_mean", 0.5),
        ("image_std", [1.0, 0.0, 1.0]),
        ("image_std", (1, float("nan"), 1)),
        ("image_std", (1, float("inf"), 1)),
        ("image_std", ("1", "1", "one")),
    ],
)
def test_build_solo(name, value):
    with pytest.raises(ValueError, match=r"^build_solo: expected \w+ to be [^;]*, got [^;]*$") as caught:
        build_solo(3, backbone="resnet18", **{name: value})
    assert name in str(caught.value)
    last = value[-1] if isinstance(value, (list, tuple)) and value else value
    assert repr(last) in str(caught.value)


@pytest.mark.parametrize("value", [-1, 0, float("nan"), float("inf"), "three", None])
def test_a_loss_weight_that_trains_nothing(value):
    message = f"build_solo: expected mask_loss_weight to be a finite number > 0, got {value!r}"
    with pytest.raises(ValueError, match=message):
        small(mask_loss_weight=value)


def test_settings_come_one_way():
    with pytest.raises(TypeError, match="build_solo: expected settings or single ones, got both: num_convs"):
        build_solo(3, ModelSettings(), num_convs=2)
    both = build_solo(3, ModelSettings(backbone="resnet18")), build_solo(3, backbone="resnet18")
    assert both[0].config == both[1].config


def test_without_weights_there_are_no_statistics_to_freeze():
    assert solo(3, backbone="resnet18").config["norm"] == "gn"
    assert solo(3, backbone="resnet18", norm="frozen_bn").config["norm"] == "frozen_bn"


@pytest.mark.parametrize(
    ("key", "change", "error", "message"),
    [
        ("labels", lambda x: x.int(), TypeError, r"targets\[0\]\['labels'\] of dtype int64, got torch.int32"),
        ("labels", lambda x: x.tolist(), TypeError, r"targets\[0\]\['labels'\] to be a tensor, got list"),
        ("masks", lambda x: x.numpy(), TypeError, r"targets\[0\]\['masks'\] to be a tensor, got ndarray"),
    ],
)
def test_targets(key, change, error, message):
    images, targets = batch()
    targets[0][key] = change(targets[0][key])
    with pytest.raises(error, match=message):
        small("solo").train()(images, targets)


def test_an_image_without_pixels():
    with pytest.raises(ValueError, match=r"images\[1\] to have pixels, got \[3, 0, 80\]"):
        small("solo").eval()([torch.rand(3, 64, 96), torch.rand(3, 0, 80)])


def test_cosine_of_nothing_in_half_precision():
    """A dead cell's vector has no direction: its attention is 0 and not 0 / 0."""
    head = small("attention", attention="cosine", attention_vectors="features").head
    grid = torch.zeros(1, 32, 8, 8, dtype=torch.float16)
    assert torch.equal(head.attention.vectors(0, grid), torch.zeros(1, 32, 8, 8))
