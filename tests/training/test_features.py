"""Kept features: the same training as without, and no image's maps for another."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_solo import batch, small

from solo_attn.training import Config, ConfigError, train
from solo_attn.training.features import FeatureCache, cache_features, refuse_varied

MakeConfig = Callable[..., Config]


def frozen(**settings: Any) -> Any:
    """A small model whose backbone's body does not learn."""
    return small(freeze="all", **settings)


def losses_and_gradients(model: Any, images: Any, targets: Any) -> tuple[Any, list[torch.Tensor]]:
    model.train()
    model.zero_grad()
    losses = model(images, targets)
    sum(losses.values()).backward()
    return losses, [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_a_step_with_kept_features_is_the_step_without() -> None:
    plain, kept = frozen(), frozen()
    cache = cache_features(kept, 1.0)
    assert kept.state_dict().keys() == plain.state_dict().keys()
    images, targets = batch()
    for turn in range(2):
        with torch.no_grad():  # as after a step
            for a, b in zip(plain.head.parameters(), kept.head.parameters(), strict=True):
                a.add_(0.01 * turn)
                b.add_(0.01 * turn)
        expected, found = (losses_and_gradients(model, images, targets) for model in (plain, kept))
        torch.testing.assert_close(found[0], expected[0])
        assert len(found[1]) == len(expected[1])
        torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-6)
        assert (cache.made, cache.found) == (2, 2 * turn)
    channels_and_strides = ((64, 4), (128, 8), (256, 16), (512, 32))
    assert cache.bytes == 2 * 4 * sum(c * 64 * 96 // s**2 for c, s in channels_and_strides)


def test_what_an_evaluation_kept_serves_a_training_step() -> None:
    model = frozen()
    cache = cache_features(model, 1.0)
    images, targets = batch(sizes=((64, 96),))
    model.eval()
    with torch.inference_mode():
        model(images)
    assert (cache.made, cache.found) == (1, 0)
    losses_and_gradients(model, images, targets)
    assert (cache.made, cache.found) == (1, 1)


def test_each_image_has_its_own_maps() -> None:
    """A pixel less bright, another size of the batch, another arithmetic: other maps."""
    model = frozen()
    body = model.backbone.body
    real = body.forward
    cache = cache_features(model, 1.0)
    images = torch.rand(3, 3, 64, 64)
    images[1] = images[0]
    images[1, 0, 5, 5] += 1e-3
    for _ in range(2):
        maps = body(images)
        for k in range(3):
            alone = real(images[k : k + 1])
            assert all(torch.equal(maps[name][k : k + 1], alone[name]) for name in alone)
    assert (cache.made, cache.found) == (3, 3)
    body(torch.nn.functional.pad(images[:1], (0, 32)))
    assert cache.made == 4
    with torch.autocast("cpu", torch.bfloat16):
        assert body(images[:1])["0"].dtype == torch.bfloat16
    assert cache.made == 5


def test_the_limit() -> None:
    size = 4 * 10
    cache = FeatureCache(lambda images: [images.flatten(1)[:, :10]], 2 * size + 1)
    images = torch.rand(3, 1, 4, 4)
    for _ in range(3):
        assert torch.equal(cache(images)[0], images.flatten(1)[:, :10])
    assert cache.bytes == 2 * size
    assert (cache.made, cache.found) == (3 + 1 + 1, 4)


def test_refuses_a_body_that_learns(config: MakeConfig, tmp_path: Path) -> None:
    message = r"\(model\.freeze: all\), got \d+ of its parameters that are trained"
    with pytest.raises(ConfigError, match=message):
        train(config(cache_features=1.0), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    learning = small(norm="bn")
    learning.backbone.body.requires_grad_(False)
    with pytest.raises(ConfigError, match="norms are frozen, got batch norm"):
        cache_features(learning, 1.0)
    for norm in ("bn", "frozen_bn", "gn"):
        cache_features(frozen(norm=norm), 1.0)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("data", "shortest_size", [48, 64]),
        ("data", "scale_jitter", [0.5, 1.0]),
        ("data", "crop_size", 32),
        ("data", "canvas", 64),
        ("data", "colour", 0.1),
        ("data", "copy_paste", 0.5),
        ("model", "min_size", [48, 64]),
    ],
)
def test_refuses_variations_that_never_come_again(
    config: MakeConfig, tmp_path: Path, section: str, key: str, value: Any
) -> None:
    settings = config(cache_features=1.0)
    setattr(getattr(settings, section), key, value)
    with pytest.raises(ConfigError, match=rf"flipped or turned at most; got {section}\.{key}$"):
        train(settings, tmp_path)


def test_flips_and_turns_are_taken(config: MakeConfig) -> None:
    settings = config(cache_features=1.0)
    settings.data.flip = settings.data.vertical_flip = 0.5
    settings.data.rotate90, settings.data.scale_jitter, settings.data.shortest_size = True, (1.0, 1.0), [64]
    refuse_varied(settings)
    settings.model.min_size, settings.model.resize_in_training = [48, 64], False
    refuse_varied(settings)


def test_a_run_makes_each_image_and_its_mirror_once(
    config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its average of the weights is that of what learns."""
    module = sys.modules["solo_attn.training.train"]  # the package has a function of that name
    caches: list[FeatureCache] = []

    def keep(*args: Any) -> None:
        caches.append(cache_features(*args))

    monkeypatch.setattr(module, "cache_features", keep)
    settings = config(cache_features=1.0, epochs=3, ema=0.5, eval_every=2)
    settings.model.freeze = "all"
    train(settings, tmp_path)
    (cache,) = caches
    # 6 training images in two orientations, 3 of validation, which came once in training, at its end, and
    # one of which came before.
    assert cache.made <= 2 * 6 + 3
    assert cache.found > 0
    assert cache.made + cache.found == 3 * 6 + 2 * 3 + 1
