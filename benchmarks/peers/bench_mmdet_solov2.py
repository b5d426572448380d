"""How fast SOLOv2's masks are beside mmdetection 3.3.0: make bench-peers."""

from functools import partial

import pytest

from solo_attn.bench import agree

from . import mmdet_solov2 as solov2
from .bench_mmdet import OURS, THEIRS
from .loading import need
from .mmdet_heads import OBJECTS, objects, predictions_agree


@pytest.fixture(scope="module")
def head():
    need("mmdet.models.dense_heads")
    return solov2.their_head().eval()


def test_mmdet_solov2_predict(race, head):
    kernels, scores, features = solov2.outputs()
    contenders = {
        OURS: partial(solov2.predict_ours, kernels, scores, features),
        THEIRS: partial(solov2.predict_theirs, head, kernels, scores, features),
    }
    predictions_agree(*(run() for run in contenders.values()))
    race(contenders, op="masks of kernels and features", what=f"{solov2.CANDIDATES} candidates")


def test_mmdet_solov2_train(race, head):
    _, _, features = solov2.outputs()
    kernels, masks = solov2.pairs(head, objects()[0])
    features.requires_grad_()
    contenders = {
        OURS: partial(solov2.train_ours, kernels, masks, features),
        THEIRS: partial(solov2.train_theirs, head, kernels, masks, features),
    }
    agree(*(run() for run in contenders.values()))
    pairs = sum(map(len, masks))
    what = f"dice loss and both gradients, {OBJECTS} objects, {pairs} pairs"
    race(contenders, op="masks of kernels and features", what=what)
