"""Beginning with another model's weights: classes by name, other grids, other heads, other backbones."""

import pytest
import torch
from small_solo import SETTINGS

from solo_attn.models import CheckpointError, ModelInfo, build_solo, save_model, take_weights, transfer

CLASSES = ["person", "rider", "car"]


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A model of three classes, without attention, and its file."""
    torch.manual_seed(0)
    model = build_solo(3, **SETTINGS, attention=None, image_mean=[0.5, 0.5, 0.5])
    path = tmp_path_factory.mktemp("before") / "a.safetensors"
    save_model(model, ModelInfo(model.config, CLASSES, [1, 2, 3], {}), path)
    return model, path


def new_model(classes=2, **changes):
    torch.manual_seed(1)
    return build_solo(classes, **{**SETTINGS, "attention": None, "image_mean": [0.5, 0.5, 0.5], **changes})


def test_all_of_the_same_model(before):
    model, path = before
    new = new_model(3)
    done = take_weights(new, path, CLASSES)
    assert (done.skipped, done.anew, done.notes, done.classes) == ({}, [], [], CLASSES)
    for name, x in model.state_dict().items():
        assert torch.equal(new.state_dict()[name], x), name


def test_outputs_of_classes_are_matched_by_name(before):
    model, path = before
    new = new_model(3)
    fresh = new.head.category_output.weight.clone()
    done = take_weights(new, path, ["car", "dog", "person"])
    weight, old = new.head.category_output.weight, model.head.category_output.weight
    assert torch.equal(weight[0], old[2])
    assert torch.equal(weight[1], fresh[1])
    assert torch.equal(weight[2], old[0])
    assert done.classes == ["car", "person"]
    assert {*done.anew} == {"head.category_output.weight", "head.category_output.bias"}
    assert done.lines()[1] == "outputs of classes taken by name: car, person"
    other = new_model(5)
    assert take_weights(other, path, list("abcde")).classes == []


def test_a_file_whose_weights_are_not_as_it_says(before, monkeypatch):
    model, path = before
    weights = {**model.state_dict()}
    weights["head.category_output.weight"] = weights["head.category_output.weight"][:2]
    weights["head.category_output.bias"] = torch.tensor(1.0)
    weights["head.mask_outputs.0.bias"] = "text"
    weights["head.mask_outputs.1.bias"] = weights["head.mask_outputs.1.bias"].to_sparse()
    info = ModelInfo(model.config, CLASSES, [1, 2, 3], {})
    monkeypatch.setattr(transfer, "read_checkpoint", lambda path: (weights, info))
    done = take_weights(new_model(3), path, CLASSES)
    assert {*done.skipped} == {*weights} - {*done.taken} - {n for n in weights if "num_batches" in n}
    assert done.skipped["head.category_output.bias"] == "of another shape ([] and not [3])"
    assert (
        done.skipped["head.mask_outputs.0.bias"]
        == done.skipped["head.mask_outputs.1.bias"]
        == "no dense tensor"
    )
    assert {*done.anew} == {*done.skipped}


def test_other_grids_and_attention_are_told(before):
    _, path = before
    new = new_model(3, num_grids=(8, 6, 5, 3, 2), attention="gated", coords="inclusive")
    fresh = new.head.mask_outputs[2].weight.clone()
    done = take_weights(new, path, CLASSES)
    assert torch.equal(new.head.mask_outputs[2].weight, fresh)
    assert done.skipped["head.mask_outputs.2.bias"] == "of another shape ([16] and not [25])"
    assert {"head.mask_outputs.2.weight", "head.attention.log_gain"} <= {*done.anew}
    assert done.notes == ["coords was 'paper' and is 'inclusive'"]
    told = "\n".join(done.lines())
    assert "made anew: head.mask_outputs (2), head.attention (4)" in told
    assert "head.mask_outputs (1)" in told


def test_another_head_takes_what_both_have(before):
    model, path = before
    new = new_model(3, head="solov2_light", kernel_channels=32, feature_channels=32)
    done = take_weights(new, path, CLASSES)
    assert torch.equal(new.head.category_output.weight, model.head.category_output.weight)
    assert done.skipped["head.mask_tower.0.weight"] == "the model has no such part"
    assert "head.kernel_output.weight" in done.anew


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"norm": "bn"}, "with the norm gn and not bn"),
        ({"backbone": "resnet34"}, "of resnet18 and not resnet34"),
    ],
)
def test_another_backbone_is_left_out_whole(before, change, reason):
    _, path = before
    done = take_weights(new_model(3, **change), path, CLASSES)
    assert done.skipped["backbone.body.conv1.weight"] == reason
    assert not any(name.startswith("backbone.body") for name in done.taken)
    assert any(name.startswith("backbone.fpn") for name in done.taken)


def test_a_backbone_alone(before, tmp_path):
    model, _ = before
    weights = {
        name.removeprefix("body."): x for name, x in model.backbone.state_dict().items() if "body" in name
    }
    torch.save({**weights, "fc.weight": torch.zeros(9, 512)}, tmp_path / "resnet.pth")
    new = new_model()
    done = take_weights(new, tmp_path / "resnet.pth", ["a", "b"])
    assert torch.equal(new.backbone.body.layer4[1].conv2.weight, model.backbone.body.layer4[1].conv2.weight)
    assert all(name.startswith("backbone.body") for name in done.taken)
    assert "head.category_output.weight" in done.anew
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    for name in ("other.pth", "absent.ckpt"):
        with pytest.raises(CheckpointError, match="checkpoint: expected "):
            take_weights(new, tmp_path / name, ["a", "b"])
