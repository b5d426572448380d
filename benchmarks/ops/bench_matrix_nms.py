"""How fast matrix_nms is: python -m pytest benchmarks/ops/bench_matrix_nms.py"""

import dataclasses

from solo_attn import BitMasks
from solo_attn import matrix_nms as kernel
from solo_attn.bench.cases import matrix_nms, nms_case


def test_matrix_nms(measure, device):
    case = matrix_nms(device)
    scores, masks, labels = case.inputs
    bits = BitMasks.from_bool(masks)
    others = {"of bits": lambda: kernel(bits, labels, scores)}
    measure(dataclasses.replace(case, others=others), "forward")


def test_matrix_nms_real(measure, device, predicted_masks):
    masks, labels, scores = (x.to(device) for x in predicted_masks)
    measure(nms_case(masks, labels, scores, f"{len(masks)} predicted masks"), "forward")
