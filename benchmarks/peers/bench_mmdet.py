"""The speed compared with mmdetection 3.3.0: make bench-peers."""

from functools import partial

import pytest
import torch

from solo_attn import matrix_nms
from solo_attn.bench import FLOOR, agree
from solo_attn.bench.case import read
from solo_attn.bench.cases import matrix_nms as nms_case
from solo_attn.interop.mmdet import mask_matrix_nms

from . import mmdet_heads as heads
from .loading import need

OURS, THEIRS = "solo-attn", "mmdetection"


def compare_nms(race, masks, labels, scores, what):
    theirs = partial(need("mmdet.models.layers").mask_matrix_nms, masks, labels, scores)
    ours, drop_in = (
        partial(matrix_nms, masks, labels, scores),
        partial(mask_matrix_nms, masks, labels, scores),
    )
    agree(ours().sort(descending=True).values, theirs()[0])
    agree(drop_in()[0], theirs()[0])
    contenders = {OURS: ours, THEIRS: theirs, "drop-in": drop_in, FLOOR: partial(read, masks)}
    race(contenders, op="matrix_nms", what=what, limit="masks read")


def test_mmdet_nms(race):
    scores, masks, labels = nms_case("cpu").inputs
    compare_nms(race, masks, labels, scores, f"{len(masks)} masks 200 x 336")


def test_mmdet_nms_real(race, predicted_masks):
    masks, labels, scores = predicted_masks
    compare_nms(race, masks, labels, scores, f"{len(masks)} predicted masks 200 x 336")


def race_prediction(race, pair, features, op, what):
    theirs, ours = pair
    heads.set_candidates(theirs, ours, features)
    contenders = {
        OURS: partial(heads.predict_ours, ours.eval(), features),
        THEIRS: partial(heads.predict_theirs, theirs, features),
    }
    heads.predictions_agree(*(run() for run in contenders.values()))
    race(contenders, op=op, what=what)


def race_training(race, pair, op):
    theirs, ours = pair
    features = [x.requires_grad_() for x in heads.pyramid()]
    instances, target = heads.objects()
    contenders = {
        OURS: partial(heads.train_ours, ours, features, target),
        THEIRS: partial(heads.train_theirs, theirs, features, instances),
    }
    agree(*(run() for run in contenders.values()))
    race(contenders, op=op, what=f"forward, targets, loss, backward, {heads.OBJECTS} objects")


@pytest.fixture(scope="module")
def pair():
    need("mmdet.models.dense_heads")
    return heads.same_weights()


@pytest.mark.parametrize("levels", [heads.THREE, (0, 1, 2, 3, 4)], ids=["three", "five"])
def test_mmdet_predict(race, pair, levels):
    what = f"{heads.CANDIDATES} candidates on {len(levels)} levels"
    race_prediction(race, pair, heads.pyramid(levels), "head", what)


def test_mmdet_train(race, pair):
    race_training(race, pair, "head")


def test_mmdet_targets(race, pair):
    theirs, ours = pair
    instances, target = heads.objects()
    contenders = {
        OURS: partial(heads.assign, [target], heads.SIZE, ours.num_grids, heads.OPTIONS.scale_ranges),
        THEIRS: partial(heads.targets_theirs, theirs, instances),
    }
    with torch.no_grad():
        heads.targets_agree(*(run() for run in contenders.values()))
        race(contenders, op="targets", what=f"{heads.OBJECTS} objects")
