from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason='the extra "train" is not installed')

from PIL import Image

from solo_attn.data import CocoInstances, StreetScenes, check_dataset, synthetic, write_street_scenes
from solo_attn.data._street_shapes import group_look, individual_look
from solo_attn.data.synthetic import draw_scene


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> StreetScenes:
    return write_street_scenes(tmp_path_factory.mktemp("scenes"), num_train=8, num_val=3, seed=4)


def test_is_a_faultless_data_set(scenes: StreetScenes) -> None:
    train = check_dataset(scenes.train_images, scenes.train_annotations, decode=True)
    val = check_dataset(scenes.val_images, scenes.val_annotations, decode=True)
    assert (train.images, val.images, train.categories) == (8, 3, 5)
    assert train.annotations >= 8 * 4
    dataset = CocoInstances(scenes.train_images, scenes.train_annotations)
    assert dataset.class_names == ["person", "rider", "car", "truck", "bus"]
    assert dataset.category_ids == [1, 2, 3, 4, 5]
    assert dataset[0][0].shape == (3, 128, 256)


def test_masks_are_the_visible_pixels(scenes: StreetScenes) -> None:
    dataset = CocoInstances(scenes.train_images, scenes.train_annotations)
    for k in range(len(dataset)):
        _, target = dataset[k]
        masks = target["masks"].numpy().astype(int)
        assert masks.sum(0).max() == 1  # no pixel of two objects
        assert masks.sum((1, 2)).min() >= 12
        for mask, box, entry in zip(
            masks, target["boxes"], dataset.coco.imgToAnns[dataset.image_ids[k]], strict=True
        ):
            rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
            assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            assert entry["area"] == mask.sum()


def test_masks_lie_on_their_objects() -> None:
    """Road that belongs to no object has no object's colour, but for the pixels beside one."""
    strayed = 0
    for index in range(30):
        image, owner, categories = draw_scene((128, 256), (0, 0, index))
        road = (owner == 0) & (np.arange(128)[:, None] > 60)  # below all buildings
        saturation = np.ptp(image.astype(int), axis=2)
        inner = np.zeros_like(road)
        inner[1:-1, 1:-1] = (
            road[1:-1, 1:-1] & road[:-2, 1:-1] & road[2:, 1:-1] & road[1:-1, :-2] & road[1:-1, 2:]
        )
        strayed += int((saturation[inner] > 40).sum())
        assert len(categories) >= owner.max()
    assert strayed == 0


def test_mask_is_as_large_as_its_object() -> None:
    """The map at 128 x 256 agrees in area with one drawn 4 times as large, where edges count for less.

    PIL fills every pixel that an outline touches: a map drawn at the final size gave a box of 36 pixels 49.
    """
    ratios = []
    for index in range(12):
        _, small, few = draw_scene((128, 256), (0, 0, index))
        _, large, many = draw_scene((512, 1024), (0, 0, index))
        if few != many:
            continue  # one that shows just enough at one size and not at the other
        for k in np.unique(small)[1:]:
            if (small == k).sum() > 60:
                ratios.append((small == k).sum() * 16 / max(1, (large == k).sum()))
    assert len(ratios) > 60
    assert abs(np.median(ratios) - 1) < 0.04


def test_nearest_object_is_painted_last() -> None:
    for index in range(20):
        _, owner, categories = draw_scene((128, 256), (0, 0, index))
        front = (owner == len(categories)).nonzero()[0]
        if len(front):
            # 11 pixels: a car that the image's side cuts off may show no wheel.
            assert front.max() >= (owner > 0).nonzero()[0].max() - 11


def test_hidden_objects_are_not_drawn() -> None:
    hidden = 0
    for index in range(40):
        _, owner, categories = draw_scene((96, 192), (0, 0, index))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(synthetic, "_LEAST_SHOWN", 0.0)
            _, every, all_categories = draw_scene((96, 192), (0, 0, index))
        hidden += len(all_categories) - len(categories)
        # What is not drawn uncovers what is behind it, and nothing else.
        assert ((owner > 0) == (every > 0)).mean() > 0.9
        areas = np.bincount(owner.ravel(), minlength=len(categories) + 1)[1:]
        assert areas.min() >= 12
    assert hidden > 10


def test_slivers_are_left_out(tmp_path: Path) -> None:
    scenes = write_street_scenes(tmp_path, num_train=40, num_val=1, size=(32, 32))
    areas = [a["area"] for a in json.loads(scenes.train_annotations.read_text())["annotations"]]
    drawn = sum(len(draw_scene((32, 32), (0, 0, index))[2]) for index in range(40))
    assert min(areas) >= 12
    assert len(areas) < drawn


def test_individuals_of_a_group_differ_a_little() -> None:
    """Look-alikes are not copies: each has a look of its own, near the others'."""
    rng = np.random.default_rng(3)
    group = group_look(rng)
    looks = [individual_look(group, rng) for _ in range(50)]
    assert len(set(looks)) == len(looks)
    colours = np.array([look.colour for look in looks], dtype=float)
    assert 2 < colours.std(0).mean() < 30
    assert np.abs(colours / group.colour - 1).max() < 0.25
    assert 0.85 < min(look.wide for look in looks) < max(look.wide for look in looks) < 1.15


def test_many_of_one_class_in_a_scene(scenes: StreetScenes) -> None:
    content = json.loads(scenes.train_annotations.read_text())
    per_scene = [
        Counter(a["category_id"] for a in content["annotations"] if a["image_id"] == image["id"])
        for image in content["images"]
    ]
    assert all(max(count.values()) >= 2 for count in per_scene)
    assert np.median([max(count.values()) for count in per_scene]) >= 4
    drawn = [set(draw_scene((32, 64), (0, 0, index))[2]) for index in range(40)]
    assert set().union(*drawn) == {0, 1, 2, 3, 4}


def test_same_seed_same_bytes_however_many(scenes: StreetScenes, tmp_path: Path) -> None:
    other = write_street_scenes(tmp_path, num_train=3, num_val=5, seed=4)
    for mine, theirs in ((scenes.train_images, other.train_images), (scenes.val_images, other.val_images)):
        for name in ("00000.png", "00002.png"):
            assert (mine / name).read_bytes() == (theirs / name).read_bytes()
    few, many = (json.loads(s.train_annotations.read_text()) for s in (other, scenes))
    assert few["annotations"] == many["annotations"][: len(few["annotations"])]
    again = write_street_scenes(tmp_path / "again", num_train=3, num_val=5, seed=4)
    assert again.train_annotations.read_bytes() == other.train_annotations.read_bytes()
    assert again.val_annotations.read_bytes() == other.val_annotations.read_bytes()


def test_other_seed_split_or_index_is_another_scene(scenes: StreetScenes, tmp_path: Path) -> None:
    other = write_street_scenes(tmp_path, num_train=1, num_val=1, seed=5)
    files = [
        scenes.train_images / "00000.png",
        scenes.train_images / "00001.png",
        scenes.val_images / "00000.png",
        other.train_images / "00000.png",
        other.val_images / "00000.png",
    ]
    assert len({file.read_bytes() for file in files}) == len(files)


def test_a_part_for_the_test(scenes: StreetScenes, tmp_path: Path) -> None:
    assert scenes.test_images is None
    assert scenes.test_annotations is None
    other = write_street_scenes(tmp_path, num_train=1, num_val=1, num_test=2, seed=4)
    assert other.test_images is not None
    assert other.test_annotations is not None
    assert check_dataset(other.test_images, other.test_annotations).images == 2
    pictures = [other.test_images / "00000.png", other.test_images / "00001.png"]
    before = [scenes.train_images / "00000.png", scenes.val_images / "00000.png"]
    assert len({file.read_bytes() for file in pictures + before}) == 4
    # The other parts do not change by it.
    assert (other.train_images / "00000.png").read_bytes() == before[0].read_bytes()


def test_finished_folder_is_left_alone(tmp_path: Path) -> None:
    first = write_street_scenes(tmp_path, num_train=1, num_val=1, size=(32, 64))
    image = first.train_images / "00000.png"
    written, stamp = image.read_bytes(), image.stat().st_mtime_ns
    assert write_street_scenes(tmp_path, num_train=1, num_val=1, size=(32, 64)) == first
    assert image.stat().st_mtime_ns == stamp
    write_street_scenes(tmp_path, num_train=1, num_val=1, size=(32, 64), seed=1)
    assert image.read_bytes() != written


def test_interrupted_writing_starts_again(tmp_path: Path) -> None:
    first = write_street_scenes(tmp_path, num_train=2, num_val=1, size=(32, 64))
    image = first.train_images / "00000.png"
    written = image.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "_MIN_PIXELS", None)  # stops after the first image
        with pytest.raises(TypeError):
            write_street_scenes(tmp_path, num_train=2, num_val=1, size=(32, 64), seed=1)
    assert image.read_bytes() != written
    write_street_scenes(tmp_path, num_train=2, num_val=1, size=(32, 64))
    assert image.read_bytes() == written


@pytest.mark.parametrize("left", [b"", b'{"version": 3, "num_tr', b"\xff\xfe", b"[" * 100_000])
def test_a_record_that_cannot_be_read_counts_as_none(tmp_path: Path, left: bytes) -> None:
    first = write_street_scenes(tmp_path, num_train=1, num_val=1, size=(32, 64))
    image = first.train_images / "00000.png"
    written, record = image.read_bytes(), (tmp_path / "scenes.json").read_bytes()
    image.write_bytes(b"")
    (tmp_path / "scenes.json").write_bytes(left)
    write_street_scenes(tmp_path, num_train=1, num_val=1, size=(32, 64))
    assert image.read_bytes() == written
    assert (tmp_path / "scenes.json").read_bytes() == record


@pytest.mark.parametrize("size", [(256, 512), (33, 65)])
def test_other_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    scenes = write_street_scenes(tmp_path, num_train=1, num_val=1, size=size)
    assert check_dataset(scenes.train_images, scenes.train_annotations).annotations > 0
    with Image.open(scenes.train_images / "00000.png") as image:
        assert image.size == size[::-1]


@pytest.mark.parametrize(
    ("argument", "value"), [("num_train", 0), ("num_val", -1), ("num_test", -1), ("size", (16, 256))]
)
def test_bad_argument_is_named(tmp_path: Path, argument: str, value: object) -> None:
    arguments = {"num_train": 1, "num_val": 1, argument: value}
    with pytest.raises(ValueError, match=f"expected .*{argument}"):
        write_street_scenes(tmp_path, **arguments)  # type: ignore[arg-type]
