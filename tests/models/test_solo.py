import io

import pytest
import torch
from small_solo import SETTINGS, SYSTEMS, batch, confident, rectangles, small

from solo_attn.models import SOLO, build_solo, solo, solo_with_attention, solo_without_coords


def test_training_gives_losses_and_evaluation_gives_instances():
    model = confident(small())
    images, targets = batch()
    copies = [{key: value.clone() for key, value in target.items()} for target in targets]
    losses = model.train()(images, targets)
    assert set(losses) == {"loss_category", "loss_mask"}
    for loss in losses.values():
        assert loss.shape == ()
        assert torch.isfinite(loss)
        assert loss.requires_grad
    for target, copy in zip(targets, copies, strict=True):  # the caller's targets stay as they are
        assert all(torch.equal(target[key], copy[key]) for key in copy)

    found = model.eval()(images)
    assert isinstance(found, list)
    for image, instances in zip(images, found, strict=True):
        count = len(instances["scores"])
        assert count > 0
        assert {key: (tuple(x.shape), x.dtype) for key, x in instances.items()} == {
            "boxes": ((count, 4), torch.float32),
            "labels": ((count,), torch.int64),
            "scores": ((count,), torch.float32),
            "masks": ((count, *image.shape[1:]), torch.bool),
        }
        assert not any(x.requires_grad for x in instances.values())
        assert torch.equal(instances["scores"], instances["scores"].sort(descending=True).values)
        assert instances["labels"].min() >= 0
        assert instances["labels"].max() < 3
    # As in torchvision, targets are welcome in evaluation, and not looked at.
    again = model(images, targets)
    assert all(torch.equal(a[k], b[k]) for a, b in zip(found, again, strict=True) for k in a)


@pytest.mark.parametrize("resize", [True, False])
@pytest.mark.parametrize("sizes", [((64, 96),), ((64, 96), (90, 64), (70, 70)), ((33, 47), (130, 70))])
def test_images_of_different_sizes(sizes, resize):
    model = confident(small(min_size=64, max_size=128, resize_in_training=resize))
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    images = [torch.rand(3, *size) for size in sizes]
    targets = [rectangles([(4, 5, 30, 29), (2, 2, 20, 20)], [0, 2], size) for size in sizes]
    losses = model.train()(images, targets)
    assert all(torch.isfinite(loss) for loss in losses.values())
    found = model.eval()(images)
    assert [tuple(x["masks"].shape[1:]) for x in found] == list(sizes)
    for shape in seen:
        assert shape[0] == len(sizes)
        assert shape[2] % 32 == shape[3] % 32 == 0
    if not resize:
        height, width = (max(side) for side in zip(*sizes, strict=True))
        assert seen[0][2:] == (-(-height // 32) * 32, -(-width // 32) * 32)


@pytest.mark.parametrize("objects", [[0, 0], [0, 2], [2, 0]])
@pytest.mark.parametrize("system", SYSTEMS)
def test_images_without_objects_train(system, objects):
    model = small(system).train()
    images, targets = batch()
    for target, count in zip(targets, objects, strict=True):
        for key in target:
            target[key] = target[key][:count]
    losses = model(images, targets)
    assert (losses["loss_mask"] == 0) == (sum(objects) == 0)
    sum(losses.values()).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name


def test_scale_ranges_and_loss_weight_reach_the_loss():
    images, targets = batch()
    with torch.no_grad():
        found = {
            name: small(**{"mask_loss_weight": 3.0, **settings}).train()(images, targets)["loss_mask"].item()
            for name, settings in {
                "default": {},
                "no level": {"scale_ranges": ((5000, 6000),) * 5},
                "half weight": {"mask_loss_weight": 1.5},
            }.items()
        }
    assert found["no level"] == 0
    assert found["half weight"] == pytest.approx(found["default"] / 2)


@pytest.mark.parametrize(
    ("constructor", "coords", "attention"),
    [(solo_without_coords, None, None), (solo, "paper", None), (solo_with_attention, "paper", "gated")],
)
def test_the_three_systems(constructor, coords, attention):
    model = constructor(3, **SETTINGS)
    assert isinstance(model, SOLO)
    assert (model.head.coords, model.settings.attention) == (coords, attention)
    assert (model.head.attention is None) == (attention is None)
    assert model.head.mask_tower[0].in_channels == (32 if coords is None else 34)
    assert constructor(3, **SETTINGS, nms_pre=7).settings.nms_pre == 7


def test_defaults_are_the_papers():
    config = solo_with_attention(5).config
    assert config == build_solo(5).config
    expected = {
        "num_classes": 5,
        "backbone": "resnet50",
        "norm": "gn",  # there are no statistics to freeze without pretrained weights
        "fpn_channels": 256,
        "head_channels": 256,
        "num_convs": 7,
        "num_grids": [40, 36, 24, 16, 12],
        "scale_ranges": [[1, 96], [48, 192], [96, 384], [192, 768], [384, 2048]],
        "coords": "paper",
        "attention_vectors": "position",
        "masks": "chosen",
        "min_size": 800,
        "max_size": 1333,
        "mask_loss_weight": 3.0,
    }
    assert {key: config[key] for key in expected} == expected


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_configuration_remakes_the_model(system):
    model = confident(small(system, max_detections=9, nms_kernel="linear"))
    again = build_solo(**model.config)
    assert again.config == model.config
    assert again.settings == model.settings
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file))
    images, _ = batch()
    for a, b in zip(model(images), again.eval()(images), strict=True):
        assert len(a["scores"]) == 9
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_autocast():
    images, targets = batch()
    model = confident(small())
    exact = {key: loss.item() for key, loss in model.train()(images, targets).items()}
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(images, targets)
        found = model.eval()(images)
    for key, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact[key], rel=0.03)
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    wanted = model(images)
    for a, b in zip(found, wanted, strict=True):
        assert {key: x.dtype for key, x in a.items()} == {key: x.dtype for key, x in b.items()}
        assert torch.isfinite(a["scores"]).all()
        assert a["scores"][0].item() == pytest.approx(b["scores"][0].item(), rel=0.05)


def good_target():
    return rectangles([(4, 4, 30, 30), (40, 8, 60, 30)], [0, 2], (64, 96))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], r"SOLO: expected images to be a non-empty list of tensors \[3, H, W\], got an empty list"),
        (torch.rand(2, 3, 64, 96), r"a non-empty list of .*, got a tensor of shape \[2, 3, 64, 96\]"),
        (None, r"SOLO: expected images to be a non-empty list of tensors .*, got NoneType"),
        (
            [torch.rand(3, 64, 96), torch.rand(1, 64, 96)],
            r"images\[1\] of shape \[3, H, W\], got \[1, 64, 96\]",
        ),
        ([torch.rand(64, 96)], r"images\[0\] of shape \[3, H, W\], got \[64, 96\]"),
        (
            [torch.zeros(3, 64, 96, dtype=torch.uint8)],
            r"images\[0\] of a float dtype in 0..1, got torch.uint8",
        ),
        (["picture.png"], r"images\[0\] of shape \[3, H, W\], got str"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_bad_images(images, message, training):
    model = small().train(training)
    with pytest.raises(ValueError, match=message):
        model(images, [good_target()] * 2)


@pytest.mark.parametrize("training", [True, False])
def test_an_image_too_thin_to_be_resized_is_named(training):
    model = small(min_size=(48, 64), max_size=128).train(training)
    targets = [good_target(), rectangles([(0, 4, 1, 30)], [0], (500, 1))]
    message = (
        r"SOLO: expected images\[1\] to keep a pixel on each side when resized to max_size 128, "
        r"got \[3, 500, 1\], which would become \[3, 128, 0\]"
    )
    with pytest.raises(ValueError, match=message):
        model([torch.rand(3, 64, 96), torch.rand(3, 500, 1)], targets)


def test_an_image_as_thin_as_can_be_resized():
    model = small(max_size=128)
    image, target = torch.rand(3, 500, 4), rectangles([(0, 4, 4, 300)], [0], (500, 4))
    assert all(torch.isfinite(loss) for loss in model.train()([image], [target]).values())
    assert model.eval()([image])[0]["masks"].shape[1:] == (500, 4)


def test_a_thin_image_that_is_not_resized():
    model = small(max_size=128, resize_in_training=False)
    image, target = torch.rand(3, 500, 1), rectangles([(0, 4, 1, 300)], [0], (500, 1))
    assert all(torch.isfinite(loss) for loss in model.train()([image], [target]).values())
    with pytest.raises(ValueError, match=r"images\[0\] to keep a pixel on each side"):  # here it would be
        model.eval()([image])


@pytest.mark.parametrize("resize", [True, False])
@pytest.mark.parametrize("object_value", [0.6, -3.0, 256, -1, 255, True])
def test_what_is_not_zero_in_a_mask_is_the_object(object_value, resize):
    settings = {"min_size": 48, "max_size": 72, "resize_in_training": resize}
    model = small(**settings).train()
    images, targets = batch()
    expected = model(images, targets)["loss_mask"]
    assert expected > 0
    value = torch.tensor(object_value)
    for target in targets:
        target["masks"] = target["masks"].to(value.dtype) * value
    assert torch.equal(model(images, targets)["loss_mask"], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": None}, r"targets\[0\] to have boxes, got \['labels', 'masks'\]"),
        ({"labels": None, "masks": None}, r"targets\[0\] to have labels, masks"),
        ({"boxes": torch.zeros(3, 4)}, r"targets\[0\]\['boxes'\] of shape \[2, 4\], got \[3, 4\]"),
        ({"masks": torch.zeros(2, 64, 95)}, r"\['masks'\] of shape \[2, 64, 96\], got \[2, 64, 95\]"),
        ({"masks": torch.zeros(64, 96)}, r"\['masks'\] of shape \[2, 64, 96\]"),
        ({"labels": torch.tensor([0, 3])}, r"\['labels'\] in 0..2, got 0..3"),
        ({"labels": torch.tensor([-1, 1])}, r"\['labels'\] in 0..2, got -1..1"),
        ({"labels": torch.zeros(2, 1, dtype=torch.int64)}, r"\['labels'\] of shape \[2\], got \[2, 1\]"),
        (
            {"boxes": torch.tensor([[4.0, 4, 30, 30], [40, 8, 40, 30]])},
            r"x2 > x1 and y2 > y1, got \[40.0, 8.0, 40.0, 30.0\] at 1",
        ),
    ],
)
def test_bad_targets(change, message):
    target = {**good_target(), **change}
    target = {key: value for key, value in target.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        small().train()([torch.rand(3, 64, 96)], [target])


def test_missing_targets():
    model = small().train()
    with pytest.raises(ValueError, match="SOLO: expected targets in training mode, got None"):
        model([torch.rand(3, 64, 96)])
    with pytest.raises(ValueError, match="SOLO: expected 2 targets, one for each image, got 1"):
        model([torch.rand(3, 64, 96)] * 2, [good_target()])


@pytest.mark.parametrize(
    "ranges",
    [
        *(((1, 2),) * 4, ((1, 2),) * 4 + ((3, 2),), [(1, 2, 3)] * 5, [(1,)] * 5, [1] * 5, 5),
        *([("1", "two")] * 5, [(1, float("nan"))] * 5),
    ],
)
def test_bad_scale_ranges(ranges):
    message = "build_solo: expected scale_ranges to be (5 pairs|pairs of low <= high).*, got "
    with pytest.raises(ValueError, match=message):
        small(scale_ranges=ranges)
