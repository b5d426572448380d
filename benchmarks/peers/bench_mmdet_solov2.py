"""How fast SOLOv2 is beside mmdetection 3.3.0, the whole head and its masks alone: make bench-peers."""

from functools import partial

import pytest

from solo_attn.bench import agree

from . import mmdet_heads as heads
from . import mmdet_solov2 as solov2
from .bench_mmdet import OURS, THEIRS, race_prediction, race_training
from .loading import need


@pytest.fixture(scope="module")
def pair():
    need("mmdet.models.dense_heads")
    return solov2.same_weights()


def test_mmdet_solov2_predict(race, pair):
    race_prediction(race, pair, heads.pyramid(), "head of SOLOv2", f"{heads.CANDIDATES} candidates")


def test_mmdet_solov2_train(race, pair):
    race_training(race, pair, "head of SOLOv2")


def test_mmdet_solov2_predict_masks(race, pair):
    head = pair[0].eval()
    kernels, scores, features = solov2.outputs()
    contenders = {
        OURS: partial(solov2.predict_ours, kernels, scores, features),
        THEIRS: partial(solov2.predict_theirs, head, kernels, scores, features),
    }
    heads.predictions_agree(*(run() for run in contenders.values()))
    race(contenders, op="masks of kernels and features", what=f"{solov2.CANDIDATES} candidates")


def test_mmdet_solov2_train_masks(race, pair):
    head = pair[0]
    _, _, features = solov2.outputs()
    kernels, masks = solov2.pairs(head, heads.objects()[0])
    features.requires_grad_()
    contenders = {
        OURS: partial(solov2.train_ours, kernels, masks, features),
        THEIRS: partial(solov2.train_theirs, head, kernels, masks, features),
    }
    agree(*(run() for run in contenders.values()))
    pairs = sum(map(len, masks))
    what = f"dice loss and both gradients, {heads.OBJECTS} objects, {pairs} pairs"
    race(contenders, op="masks of kernels and features", what=what)
