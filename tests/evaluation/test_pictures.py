import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.mask import decode
from small_coco import CocoSet, block, compressed

from solo_attn.data import CocoInstances, eval_transforms
from solo_attn.evaluation import (
    draw_instances,
    found_beside_truth,
    instance_colours,
    learning_curve,
    pictures,
    side_by_side,
)

NAMES = ["person", "car"]


def two_squares(height=60, width=80, side=20):
    """Two touching squares of one class."""
    masks = torch.zeros(2, height, width, dtype=torch.bool)
    masks[0, 10 : 10 + side, 10 : 10 + side] = True
    masks[1, 10 : 10 + side, 10 + side : 10 + 2 * side] = True
    boxes = torch.tensor([[10, 10, 10 + side, 10 + side], [10 + side, 10, 10 + 2 * side, 10 + side]])
    return {
        "boxes": boxes.float(),
        "labels": torch.tensor([1, 1]),
        "scores": torch.tensor([0.9, 0.8]),
        "masks": masks,
    }


def grey(height=60, width=80):
    return torch.full((3, height, width), 100, dtype=torch.uint8)


def test_two_instances_of_a_class():
    image, found = grey(), two_squares()
    before = image.clone()
    drawn = draw_instances(image, found, NAMES)
    assert drawn.dtype == torch.uint8
    assert drawn.shape == image.shape
    assert torch.equal(image, before)
    left, right, edge = drawn[:, 20, 20].int(), drawn[:, 20, 40].int(), drawn[:, 20, 29]
    assert (left - right).abs().max() > 50
    first, second = instance_colours(2)
    assert edge.tolist() == list(first)
    assert drawn[:, 20, 30].tolist() == list(second)
    assert left.tolist() == [round(0.55 * 100 + 0.45 * channel) for channel in first]
    outside = ~found["masks"].any(0)
    assert torch.equal(drawn[:, outside], image[:, outside])


def test_higher_score_on_top():
    found = two_squares()
    found["masks"][1] = True
    for scores, expected in (([0.9, 0.8], 0), ([0.8, 0.9], 0)):
        drawn = draw_instances(grey(), {**found, "scores": torch.tensor(scores)}, NAMES, alpha=1.0)
        best = instance_colours(2)[expected]
        assert drawn[:, 20, 20].tolist() == list(best)
    # Nothing is black where masks overlap.
    assert drawn.amax(0).min() > 0


def test_threshold_is_inclusive():
    found = two_squares()
    assert torch.equal(draw_instances(grey(), found, NAMES, score_threshold=0.95), grey())
    one = draw_instances(grey(), found, NAMES, score_threshold=found["scores"][0].item())
    assert not torch.equal(one[:, 20, 20], grey()[:, 20, 20])
    assert torch.equal(one[:, 20, 40], grey()[:, 20, 40])


def test_ground_truth_has_no_scores():
    found = two_squares()
    truth = {key: found[key] for key in ("boxes", "labels", "masks")}
    assert torch.equal(draw_instances(grey(), truth, NAMES), draw_instances(grey(), found, NAMES))


def test_float_images_and_no_instances():
    none = {key: value[:0] for key, value in two_squares().items()}
    assert torch.equal(draw_instances(grey().float() / 255, none, NAMES), grey())


def test_names_only_where_they_fit():
    size = (240, 320)
    large, small = two_squares(*size, side=120), two_squares(*size, side=12)
    drawn = draw_instances(grey(*size), large, NAMES)
    other = draw_instances(grey(*size), large, ["bicycle", "tram"])
    assert not torch.equal(drawn, other)
    # Text at the left upper corner of each box, nothing at the right lower one.
    changed = (drawn != other).any(0)
    assert changed[10:30, 10:130].any()
    assert not changed[40:].any()
    numbers = draw_instances(grey(*size), {**large, "labels": torch.zeros(2, dtype=torch.int64)}, ["tram"])
    assert not torch.equal(numbers, drawn)
    assert torch.equal(
        draw_instances(grey(*size), small, NAMES), draw_instances(grey(*size), small, ["a", "b"])
    )
    tiny = two_squares(100, 300, side=80)
    plain = {k: tiny[k] for k in ("boxes", "labels", "masks")}
    assert torch.equal(
        draw_instances(grey(100, 300), tiny, NAMES), draw_instances(grey(100, 300), plain, NAMES)
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 4), st.integers(0, 1000))
def test_any_size(height, width, count, seed):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, height, width, generator=generator) < 0.5
    found = {
        "boxes": torch.zeros(count, 4),
        "labels": torch.zeros(count, dtype=torch.int64),
        "scores": torch.rand(count, generator=generator),
        "masks": masks,
    }
    drawn = draw_instances(grey(height, width), found, ["x"], score_threshold=0.0)
    assert torch.equal((drawn != 100).any(0), masks.any(0))


@pytest.mark.parametrize("seed", [0, 5])
def test_colours(seed):
    colours = instance_colours(400, seed)
    assert len(set(colours)) > 390
    # Those near in order, which are often near in the picture, are far apart in colour.
    for gap in range(1, 21):
        for one, other in zip(colours[:-gap], colours[gap:], strict=True):
            assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 55


def test_bad_arguments():
    found = two_squares()
    cases = [
        (ValueError, r"image of shape \[3, H, W\], got \[1, 60, 80\]", grey()[:1], found),
        (ValueError, "image of dtype uint8, or float in 0..1, got torch.int64", grey().long(), found),
        (
            ValueError,
            r"prediction\['masks'\] of the image's size \[50, 80\], got \[60, 80\]",
            grey(50),
            found,
        ),
        (
            ValueError,
            r"prediction\['labels'\] in 0..1, got 7",
            grey(),
            {**found, "labels": found["labels"] + 6},
        ),
    ]
    for error, message, image, prediction in cases:
        with pytest.raises(error, match="draw_instances: expected " + message):
            draw_instances(image, prediction, NAMES)


def test_side_by_side(tmp_path):
    images = [grey(), grey(90, 60)]
    found = [two_squares(), two_squares(90, 60)]
    path = tmp_path / "figure5.png"
    side_by_side(
        images, {"SOLO": found, "Attention mechanism": found}, path, class_names=NAMES, ground_truth=found
    )
    with Image.open(path) as picture:
        # Three columns of 4 inches at 200 pixels; rows of 3 and 6 inches and the titles.
        assert picture.width == 2400
        assert picture.height == pytest.approx(1880, abs=1)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 22)}
    assert set(instance_colours(2)) <= colours
    one = tmp_path / "one.png"
    side_by_side(images[:1], {"SOLO": found[:1]}, one, class_names=NAMES, column_width=2)
    with Image.open(one) as picture:
        assert picture.width == 400
    # Seven systems and the truth: a row for each, and the images beside each other. The fourth finds nothing.
    many = tmp_path / "many.png"
    nothing = [{key: value[:0] for key, value in one.items()} for one in found]
    systems = {f"system {k}": nothing if k == 3 else found for k in range(7)}
    side_by_side(images, systems, many, class_names=NAMES, ground_truth=found, column_width=1)
    with Image.open(many) as picture:
        assert picture.width == 400
        assert picture.height == pytest.approx(200 * 8 * 1.5, abs=1)
        rows = [picture.convert("RGB").crop((0, 300 * k, 400, 300 * k + 300)) for k in range(8)]
    colourful = [max(max(c) - min(c) for _, c in row.getcolors(1 << 20)) > 60 for row in rows]
    assert colourful == [k != 4 for k in range(8)]


def test_what_was_found_stands_beside_what_is_there(tmp_path, monkeypatch):
    """The results of an image in its row, from the score on; rows from few objects to many."""
    data = CocoSet(tmp_path / "set")
    dataset = CocoInstances(*data.write(), eval_transforms())
    mask = block(3, 4, 10, 8)
    found = {"image_id": 7, "category_id": dataset.category_ids[-1], "bbox": [3, 4, 10, 8]}
    results = [{**found, "segmentation": compressed(mask), "score": score} for score in (0.9, 0.2)]
    seen = {}
    monkeypatch.setattr(pictures, "side_by_side", lambda *args, **kwargs: seen.update(args=args, **kwargs))
    found_beside_truth(dataset, results, tmp_path / "x.png", rows=2)
    images, (column,), path = seen["args"][0], seen["args"][1].values(), seen["args"][2]
    assert path == tmp_path / "x.png"
    assert [len(one["labels"]) for one in seen["ground_truth"]] == sorted(
        len(one["labels"]) for one in seen["ground_truth"]
    )
    assert len(images) == len(column) == 2
    assert len(column[0]["scores"]) == 0
    assert column[1]["labels"].tolist() == [len(dataset.category_ids) - 1] * 2
    assert torch.equal(torch.from_numpy(decode(column[1]["masks"][0])), torch.from_numpy(mask))
    assert column[1]["boxes"][0].tolist() == [3, 4, 13, 12]
    monkeypatch.undo()
    objects = [len(dataset.coco.imgToAnns.get(image, [])) for image in dataset.image_ids]
    assert 0 in objects
    assert all(objects[k] for k in pictures.spread(dataset, len(objects), empty=False))
    found_beside_truth(dataset, results, tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.width == 1600


def test_side_by_side_bad_arguments(tmp_path):
    found = two_squares()
    with pytest.raises(ValueError, match="side_by_side: expected 'SOLO' of 2 images' instances, got 1"):
        side_by_side([grey(), grey()], {"SOLO": [found]}, tmp_path / "x.png", class_names=NAMES)
    with pytest.raises(ValueError, match="side_by_side: expected images and predictions not empty"):
        side_by_side([], {"SOLO": []}, tmp_path / "x.png", class_names=NAMES)
    with pytest.raises(OSError, match=r"side_by_side: expected path .* got '.*/none/x.png' \(No such file"):
        side_by_side([grey()], {"SOLO": [found]}, tmp_path / "none" / "x.png", class_names=NAMES)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OSError, match=r"got '.*/folder.png' \(Is a directory\)"):
        side_by_side([grey()], {"SOLO": [found]}, tmp_path / "folder.png", class_names=NAMES)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.png"]


ROWS = [{"step": step, "train/loss_category": 1 / step, "train/loss_mask": 3 / step} for step in range(1, 60)]
ROWS += [{"step": 30, "val/ap": 0.1, "val/ap50": 0.2, "val/ap75": -1.0}, {"step": 59, "val/ap": 0.2}]


def test_learning_curve(tmp_path):
    learning_curve(ROWS, tmp_path / "rows.png")
    table = tmp_path / "metrics.csv"
    keys = ["step", "train/loss_category", "train/loss_mask", "val/ap", "val/ap50", "val/ap75"]
    lines = [",".join(keys)] + [",".join(str(row.get(key, "")) for key in keys) for row in ROWS]
    table.write_text("\n".join(lines))
    learning_curve(table, tmp_path / "csv.png")
    learning_curve(ROWS[:5], tmp_path / "losses.png")
    with Image.open(tmp_path / "rows.png") as rows, Image.open(tmp_path / "csv.png") as same:
        assert rows.size == (1200, 1080)
        assert rows.tobytes() == same.tobytes()
    with Image.open(tmp_path / "losses.png") as losses:
        assert losses.size == (1200, 720)


def test_learning_curve_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"expected rows to have step and one of .* got \['loss_mask'\]"):
        learning_curve([{"loss_mask": 1.0}], tmp_path / "x.png")
    with pytest.raises(ValueError, match="expected loss_mask at step 3 a number, got 'much'"):
        learning_curve([{"step": 3, "loss_mask": "much"}], tmp_path / "x.png")
    with pytest.raises(FileNotFoundError, match=r"rows to be a CSV file, got '/none.csv'"):
        learning_curve("/none.csv", tmp_path / "x.png")
    (tmp_path / "wide.csv").write_text("step,loss_mask\n1,2.0\n2,1.5,7,8\n")
    with pytest.raises(ValueError, match=r"line 3 of '.*wide.csv' of 2 columns as its header has, got 4"):
        learning_curve(tmp_path / "wide.csv", tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"expected loss_mask at step 3 a number, got \[1\]"):
        learning_curve([{"step": 3, "loss_mask": [1]}], tmp_path / "x.png")
    with pytest.raises(OSError, match=r"learning_curve: expected path .*/none/x.png"):
        learning_curve(ROWS, tmp_path / "none" / "x.png")
