"""matrix_nms at full size: thousands of masks in bounded memory, and what models predicted on COCO images."""

import gzip
import json
import subprocess
import sys
from collections import Counter

import op_oracles as naive
import pytest
import torch
from op_cases import close

from solo_attn import BitMasks
from tools.real_data import find

OP = "matrix_nms"
POOL = find("yolact_pool")

MEMORY = """
import sys, torch, solo_attn
from solo_attn import BitMasks, matrix_nms
backend, device, count, height, width = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])

def peak():
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def run(n):
    words = torch.randint(1 << 62, (n, -(-height * width // 64)), device=device)
    masks = BitMasks(words, words.new_zeros(n), words.new_zeros(n).float(), (height, width))
    before = peak()
    scores = matrix_nms(masks, words.new_zeros(n), torch.rand(n, device=device), backend=backend)
    assert scores.isfinite().all()
    return peak() - before

run(2)
print(run(count))
"""


@pytest.mark.not_interpreted("so many masks take minutes, and the memory is the interpreter's")
@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is read with resource.getrusage")
@pytest.mark.parametrize(("shape", "limit"), [((3000, 48, 64), 700), ((200, 800, 1344), 400)], ids=str)
def test_bounded_memory(runner, shape, limit):
    """Fault 5. As floats the second case's masks alone would be 860 MB."""
    if runner.backend == "shim":
        pytest.skip("the shim plays each lane of a GPU on the CPU: too slow for so much")
    command = [sys.executable, "-c", MEMORY, runner.backend, runner.device, *map(str, shape)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < limit << 20


@pytest.fixture(scope="module")
def images():
    """Of three images, the busiest of those with at most 40 masks: masks, labels, scores, IoU in loops."""
    coco_mask = pytest.importorskip("pycocotools.mask", reason='the extra "train" is not installed')
    with gzip.open(POOL / "pool_A.json.gz", "rt") as file:
        results = json.load(file)
    counts = Counter(result["image_id"] for result in results)
    busy = sorted((image for image in counts if counts[image] <= 40), key=lambda image: -counts[image])[:3]
    found = []
    for image in busy:
        mine = [result for result in results if result["image_id"] == image]
        masks = naive.np.stack([coco_mask.decode(result["segmentation"]) for result in mine])
        labels = torch.tensor([result["category_id"] for result in mine])
        scores = torch.tensor([result["score"] for result in mine], dtype=torch.float64)
        found.append((torch.from_numpy(masks), labels, scores, naive.iou(masks)))
    return found


@pytest.mark.not_interpreted("a minute and a half each; test_matrix_nms.py has smaller masks")
@pytest.mark.data
@pytest.mark.skipif(POOL is None, reason="no real data yolact_pool (tools/real_data.py)")
@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_real_masks(runner, images, kernel):
    """Four models pooled: two thirds of the masks overlap a peer."""
    if runner.backend == "shim":
        pytest.skip("the shim plays each lane of a GPU on the CPU: too slow for so much")
    for masks, labels, scores, overlap in images:
        assert (scores.diff() > 0).any(), "unsorted input is part of this test"
        same = labels[:, None] == labels[None, :]
        assert ((torch.from_numpy(overlap) > 0.5) & same).sum() > len(labels), "so is crowding"
        exact = naive.nms(overlap, labels.tolist(), scores.tolist(), kernel, 2.0)
        args = [x.to(runner.device) for x in (labels, scores.to(runner.finest))]
        masks = masks.to(runner.device)
        out = runner(masks, *args, kernel)
        close(out, exact)
        assert torch.equal(runner(BitMasks.from_bool(masks), *args, kernel), out)
