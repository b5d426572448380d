"""Kept masks at image size (docs/method.md, "Inference" step 9), as pixels or as COCO's run lengths.

Stored: the maps at ``out_size`` (stride 4), for `_MAPS` pixels of them at a time, which the second cache
holds. Made again in every tile of the image that has taps in it, each of these pixels would cost its
exponential and 8 loads several times over. What is larger, the padded input, exists nowhere: a tile of the
image takes the rows of the map that it needs through both resizes in y, then exchanges columns between lanes
for both in x.
Bytes: H W a mask, written once, the floor; 4 loads for every fourth pixel or so, and 9 flops for each.

Run lengths: the same pixels, column by column, for `_PIXELS` at a time. Changes are counted in each block of
pixels, then written where the counts before it end. Only these cross to the host, which makes text of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._bilinear import bilinear_tap, check_sizes, lerp
from ._launch import Aot, launch
from ._maps import cell_and_tile
from ._probability import CONFIGS, inputs, own_probabilities, owned_tile, spread_x
from ._tuning import tuned

_MAPS = 1 << 23  # pixels of stride-4 maps that are stored at a time
_PIXELS = 1 << 28  # pixels of the image that are stored at a time to find run lengths in
_X, _Y, _MAP_X = 128, 16, 64  # a tile of the image, and the columns of the map that it takes
_RUN = 2048  # pixels of a block in which changes are counted


@tuned(CONFIGS, key=("out_height", "out_width"))
@triton.jit(
    do_not_specialize=(
        "coarse_height",
        "coarse_width",
        "side",
        "height",
        "width",
        "out_height",
        "own_y",
        "own_x",
    )
)
def _paste_masks_maps_kernel(
    coarse_ptr,
    attention_ptr,
    maps_ptr,
    coarse_height,
    coarse_width,
    side,
    height,
    width,
    out_height,
    out_width,
    own_y,
    own_x,
    HAS_ATTENTION: tl.constexpr,
    SAME: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    SOURCE_X: tl.constexpr,
    SOURCE_Y: tl.constexpr,
):
    k, _, x, y, own, p = own_probabilities(
        coarse_ptr,
        attention_ptr,
        coarse_height,
        coarse_width,
        side,
        height,
        width,
        out_height,
        out_width,
        own_y,
        own_x,
        HAS_ATTENTION,
        SAME,
        BLOCK_X,
        BLOCK_Y,
        SOURCE_X,
        SOURCE_Y,
    )
    columns, rows = x + tl.arange(0, BLOCK_X), y + tl.arange(0, BLOCK_Y)
    tl.store(maps_ptr + columns[:, None] + (k * out_height + rows)[None, :] * out_width, p, mask=own)


@triton.jit
def _padded_rows(image_ptr, columns, rows, width, height):
    """``rows`` of the padded input, 4 times as high as the map, at ``columns`` of the map."""
    top, bottom, down = bilinear_tap(rows, height, 4 * height)
    above = tl.load(image_ptr + ((top * width)[None, :] + columns[:, None]))
    return lerp(above, tl.load(image_ptr + ((bottom * width)[None, :] + columns[:, None])), down[None, :])


@triton.jit
def _padded_columns(tile, first, columns, width, MAP_X: tl.constexpr, BLOCK_Y: tl.constexpr):
    """``columns`` of the padded input from a tile that begins at column ``first`` of the map."""
    left, right, across = bilinear_tap(columns, width, 4 * width)
    near = tl.gather(tile, spread_x(left - first, MAP_X, BLOCK_Y), 0)
    return lerp(near, tl.gather(tile, spread_x(right - first, MAP_X, BLOCK_Y), 0), across[:, None])


@triton.jit(do_not_specialize=("height", "width", "image_height", "image_width", "own_x"))
def _paste_masks_fwd_kernel(
    maps_ptr,
    masks_ptr,
    height,
    width,
    image_height,
    image_width,
    original_height,
    original_width,
    own_x,
    threshold,
    BY_COLUMNS: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    MAP_X: tl.constexpr,
):
    k, _, x, y, own = owned_tile(original_width, original_height, own_x, BLOCK_Y, BLOCK_X, BLOCK_Y)
    columns, rows = x + tl.arange(0, BLOCK_X), y + tl.arange(0, BLOCK_Y)
    left, _, _ = bilinear_tap(x, image_width, original_width)
    first, _, _ = bilinear_tap(left, width, 4 * width)
    from_map = tl.minimum(first + tl.arange(0, MAP_X), width - 1)
    top, bottom, down = bilinear_tap(rows, image_height, original_height)
    image = maps_ptr + k * height * width
    tall = lerp(
        _padded_rows(image, from_map, top, width, height),
        _padded_rows(image, from_map, bottom, width, height),
        down[None, :],
    )
    left, right, across = bilinear_tap(columns, image_width, original_width)
    p = lerp(
        _padded_columns(tall, first, left, width, MAP_X, BLOCK_Y),
        _padded_columns(tall, first, right, width, MAP_X, BLOCK_Y),
        across[:, None],
    )
    if BY_COLUMNS:
        place = (k * original_width + columns)[:, None] * original_height + rows[None, :]
    else:
        place = columns[:, None] + (k * original_height + rows)[None, :] * original_width
    tl.store(masks_ptr + place, (p > threshold).to(tl.uint8), mask=own)


@triton.jit(do_not_specialize=("blocks",))
def _paste_masks_changes_kernel(
    masks_ptr, begins_ptr, places_ptr, counts_ptr, pixels, blocks, WRITE: tl.constexpr, BLOCK: tl.constexpr
):
    """Counts the pixels of a block that differ from the one before, or writes where they are.

    A mask starts after a pixel that is not set. Its end is stored after its last change.
    """
    k, block = cell_and_tile(blocks)
    place = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = masks_ptr + k * pixels + place
    now = tl.load(mask, mask=place < pixels, other=0)
    before = tl.load(mask - 1, mask=(place < pixels) & (place > 0), other=0)
    change = (now != before) & (place < pixels)
    last = block == blocks - 1
    if WRITE:
        begin = tl.load(begins_ptr + k * blocks + block)
        number = tl.cumsum(change.to(tl.int32), 0)
        tl.store(places_ptr + begin + number - 1, place, mask=change)
        end = places_ptr + begin + tl.sum(change.to(tl.int32))
        tl.store(end, tl.cast(pixels, tl.int64), mask=last)
    else:
        tl.store(counts_ptr + k * blocks + block, tl.sum(change.to(tl.int32)) + last.to(tl.int32))


def paste_masks(
    coarse_logits: Tensor,
    attention: Tensor | None,
    size: Sequence[int],
    out_size: Sequence[int],
    image_size: Sequence[int],
    original_size: Sequence[int],
    threshold: float,
) -> Tensor:
    """Stride 4 -> padded input (4 x out_size) -> crop to image_size -> original_size -> > threshold."""
    masks = coarse_logits.new_empty(len(coarse_logits), *original_size, dtype=torch.uint8)
    step = max(1, _MAPS // (out_size[0] * out_size[1]))
    for start in range(0, len(coarse_logits), step):
        part = slice(start, start + step)
        rows = None if attention is None else attention[part]
        maps = _maps(coarse_logits[part], rows, size, out_size)
        _paste(maps, masks[part], image_size, original_size, threshold, by_columns=False)
    return masks.view(torch.bool)


def paste_masks_rle(
    coarse_logits: Tensor,
    attention: Tensor | None,
    size: Sequence[int],
    out_size: Sequence[int],
    image_size: Sequence[int],
    original_size: Sequence[int],
    threshold: float,
) -> tuple[Tensor, Tensor]:
    """COCO's compressed counts, end to end: uint8 [total], and where each mask's begin and end: [K+1]."""
    pixels = original_size[0] * original_size[1]
    step = max(1, min(_MAPS // (out_size[0] * out_size[1]), _PIXELS // pixels))
    texts, lengths = [torch.empty(0, dtype=torch.uint8)], [torch.zeros(1, dtype=torch.int64)]
    for start in range(0, len(coarse_logits), step):
        part = slice(start, start + step)
        rows = None if attention is None else attention[part]
        maps = _maps(coarse_logits[part], rows, size, out_size)
        masks = maps.new_empty(len(maps), pixels, dtype=torch.uint8)
        _paste(maps, masks, image_size, original_size, threshold, by_columns=True)
        text, length = _text(*_changes(masks))
        texts.append(text)
        lengths.append(length)
    return torch.cat(texts), torch.cat(lengths).cumsum(0)


def _maps(
    coarse_logits: Tensor, attention: Tensor | None, size: Sequence[int], out_size: Sequence[int]
) -> Tensor:
    """Probabilities at ``out_size``."""
    given = inputs("paste_masks", coarse_logits, attention, size, out_size)
    maps = coarse_logits.new_empty(len(coarse_logits), *out_size, dtype=torch.float32)
    grid = (len(coarse_logits) * given.tiles,)
    launch(_paste_masks_maps_kernel, grid, *given.tensors, maps, *given.sizes, **given.constants)
    return maps


def _paste(
    maps: Tensor,
    masks: Tensor,
    image_size: Sequence[int],
    original_size: Sequence[int],
    threshold: float,
    *,
    by_columns: bool,
) -> None:
    count, height, width = maps.shape
    padded = (4 * height, 4 * width)
    check_sizes("paste_masks", ((height, width), padded), (image_size, original_size))
    # The taps of n pixels in a row lie in (n - 1) image / original / 4 + 4 columns of the map.
    own_x = min(_X, (_MAP_X - 4) * 4 * original_size[1] // image_size[1]) or 1
    launch(
        _paste_masks_fwd_kernel,
        (count * triton.cdiv(original_size[1], own_x) * triton.cdiv(original_size[0], _Y),),
        maps,
        masks,
        height,
        width,
        *image_size,
        *original_size,
        own_x,
        threshold,
        BY_COLUMNS=by_columns,
        BLOCK_X=_X,
        BLOCK_Y=_Y,
        MAP_X=_MAP_X,
    )


def _changes(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Of masks [K, P]: the pixels at which each changes, and P, end to end; and how many of these it has."""
    count, pixels = masks.shape
    blocks = triton.cdiv(pixels, _RUN)
    counts = masks.new_empty(count, blocks, dtype=torch.int32)

    def run(begins: Tensor, places: Tensor, write: bool) -> None:
        given = (masks, begins, places, counts, pixels, blocks)
        launch(_paste_masks_changes_kernel, (count * blocks,), *given, WRITE=write, BLOCK=_RUN)

    nothing = counts.new_empty(1, dtype=torch.int64)
    run(nothing, nothing, False)
    ends = counts.flatten().cumsum(0)
    places = masks.new_empty(int(ends[-1]), dtype=torch.int64)
    run(ends - counts.flatten(), places, True)
    return places.cpu(), counts.sum(1).cpu()


def _text(places: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """COCO's compressed counts from where masks change, and how long each mask's are.

    Counts stand as their difference to the one before the last, from the fourth on; five bits to a character,
    low ones first, bit 5 where more follow, bit 4 of the last one being the sign.
    """
    begins = counts.cumsum(0) - counts
    number = torch.arange(len(places)) - begins.repeat_interleave(counts)
    runs = places - torch.where(number > 0, places.roll(1), 0)
    rest = runs - torch.where(number > 2, runs.roll(2), 0)
    characters = torch.zeros(len(places), 13, dtype=torch.uint8)  # 64 bits
    used = torch.zeros(len(places), 13, dtype=torch.bool)
    more = torch.ones(len(places), dtype=torch.bool)
    for k in range(13):
        used[:, k] = more
        five = rest & 31
        rest = rest >> 5
        more = more & torch.where(five & 16 != 0, rest != -1, rest != 0)
        characters[:, k] = (five | 32 * more) + 48
    lengths = torch.zeros_like(counts).index_add_(
        0, torch.arange(len(counts)).repeat_interleave(counts), used.sum(1)
    )
    return characters[used], lengths


_TYPES = {
    "coarse_ptr": "*T",
    "attention_ptr": "*T",
    "maps_ptr": "*fp32",
    "masks_ptr": "*u8",
    "begins_ptr": "*i64",
    "places_ptr": "*i64",
    "counts_ptr": "*i32",
    "threshold": "fp32",
}
_TILES = {"BLOCK_X": _X, "BLOCK_Y": _Y, "MAP_X": _MAP_X}
AOT = (
    *(
        Aot(_paste_masks_maps_kernel, _TYPES, {"HAS_ATTENTION": given, "SAME": same})
        for given in (True, False)
        for same in (True, False)
    ),
    *(Aot(_paste_masks_fwd_kernel, _TYPES, {"BY_COLUMNS": by, **_TILES}, ("fp32",)) for by in (False, True)),
    *(
        Aot(_paste_masks_changes_kernel, _TYPES, {"WRITE": w, "BLOCK": _RUN}, ("fp32",))
        for w in (False, True)
    ),
)
