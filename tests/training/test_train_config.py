from __future__ import annotations

from pathlib import Path

import pytest

from solo_attn.models import build_solo
from solo_attn.training import Config, ConfigError, TrainConfig, load_config, override
from solo_attn.training.module import learning_rate_factor, scaled_learning_rate

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_load(path: Path) -> None:
    config = load_config(path)
    assert config.data.train_images
    build_solo(1, **{**config.model.as_dict(), "pretrained": False, "backbone": "resnet18"})


def test_shipped_configs_are_there() -> None:
    assert {path.stem for path in CONFIGS} >= {"paper_cityscapes", "nuclei_small", "coco"}


def test_overrides_and_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("model:\n  coords: null\n  attention: rsqrt\ntrain:\n")
    config = load_config(file, ["train.epochs=3", "train.weight_decay=1e-5", "model.min_size=[96, 128]"])
    assert config.model.coords is None
    assert config.model.attention == "rsqrt"
    assert (config.train.epochs, config.train.weight_decay) == (3, 1e-5)
    assert config.model.min_size == [96, 128]
    config.save(tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("train.epoch=3", "unknown key train.epoch; did you mean train.epochs"),
        ("trian.epochs=3", "unknown key trian; did you mean train"),
        ("train.epochs=many", "train.epochs to be an integer >= 1, got 'many'"),
        ("train.epochs=2.5", "train.epochs to be an integer >= 1, got 2.5"),
        ("train.epochs=true", "train.epochs to be an integer >= 1, got True"),
        ("train.epochs=0", "train.epochs to be an integer >= 1, got 0"),
        ("train.optimizer=adam", "train.optimizer to be 'sgd' or 'adamw', got 'adam'"),
        (
            "model.attention=1",
            "'gated' or 'cosine' or 'rsqrt' or 'literal' or null, got 1",
        ),
        ("model.num_grids=40", "model.num_grids to be 5 integers >= 1, got 40"),
        ("model.coords=yes", "model.coords to be 'paper' or 'inclusive' or null, got True"),
        ("train.momentum=1", "train.momentum to be a finite number in [0, 1), got 1"),
        ("train.momentum=-0.1", "train.momentum to be a finite number in [0, 1), got -0.1"),
        ("train.momentum=.nan", "train.momentum to be a finite number in [0, 1), got nan"),
        ("train.weight_decay=-1e-4", "train.weight_decay to be a finite number >= 0, got '-1e-4'"),
        ("train.weight_decay=.inf", "train.weight_decay to be a finite number >= 0, got inf"),
        ("train.learning_rate=0", "train.learning_rate to be a finite number > 0, got 0"),
        ("train.learning_rate=nan", "train.learning_rate to be a finite number > 0, got 'nan'"),
        (f"train.learning_rate={'9' * 400}", "train.learning_rate to be a finite number"),
        ("train.clip_norm=0", "train.clip_norm to be a finite number > 0 or null, got 0"),
        ("train.clip_norm=-.inf", "train.clip_norm to be a finite number > 0 or null, got -inf"),
        ("train.warmup_ratio=0", "train.warmup_ratio to be a finite number in (0, 1], got 0"),
        ("train.warmup_ratio=1.1", "train.warmup_ratio to be a finite number in (0, 1], got 1.1"),
        ("train.warmup_steps=-1", "train.warmup_steps to be an integer >= 0, got -1"),
        (
            "train.milestones=[0.5, 1]",
            "to be a list of finite numbers in (0, 1), got [0.5, 1]",
        ),
        ("train.milestones=[0]", "train.milestones to be a list of finite numbers in (0, 1), got [0]"),
        ("train.milestones=[.nan]", "train.milestones to be a list of finite numbers in (0, 1), got [nan]"),
        ("train.gamma=0", "train.gamma to be a finite number in (0, 1], got 0"),
        ("train.gamma=2", "train.gamma to be a finite number in (0, 1], got 2"),
        ("train.max_minutes=0", "train.max_minutes to be a finite number > 0 or null, got 0"),
        ("train.max_steps=0", "train.max_steps to be an integer >= 1 or null, got 0"),
        ("train.eval_max_detections=9", "train.eval_max_detections to be an integer >= 10, got 9"),
        ("train.seed=-1", "train.seed to be an integer in [0, 4294967295], got -1"),
        ("train.seed=4294967296", "train.seed to be an integer in [0, 4294967295], got 4294967296"),
        ("data.workers=-1", "data.workers to be an integer >= 0, got -1"),
        ("data.flip=.nan", "data.flip to be a finite number in [0, 1], got nan"),
        ("data.scale_jitter=[1, .inf]", "data.scale_jitter to be 2 finite numbers > 0 or null"),
        ("data.check_images=1", "data.check_images to be true or false, got 1"),
        ("model.nms_sigma=.nan", "model.nms_sigma to be a finite number > 0, got nan"),
        ("model.image_std=[1, 1, .inf]", "model.image_std to be 3 finite numbers"),
        ("model.norm=ln", "model.norm to be 'frozen_bn' or 'bn' or 'gn' or null, got 'ln'"),
        ("epochs=3", "section.key=value"),
        ("train.epochs", "section.key=value"),
        ("train.epochs=[", "expected YAML"),
    ],
)
def test_bad_overrides(item: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(Config(), [item])
    assert message in str(caught.value)


def test_all_numbers_out_of_range_in_one_message() -> None:
    with pytest.raises(ConfigError) as caught:
        override(Config(), ["train.momentum=2", "train.epochs=0"])
    assert str(caught.value) == (
        "config: expected train.epochs to be an integer >= 1, got 0; "
        "train.momentum to be a finite number in [0, 1), got 2"
    )
    with pytest.raises(ValueError, match="momentum"):
        Config(train=TrainConfig(momentum=float("nan")))  # without YAML


@pytest.mark.parametrize(
    "item",
    [
        "train.momentum=0",
        "train.weight_decay=0",
        "train.warmup_ratio=1",
        "train.warmup_steps=0",
        "train.milestones=[]",
        "train.gamma=1",
        "train.clip_norm=null",
        "train.max_minutes=0.001",
        "train.seed=4294967295",
        "data.workers=0",
        "data.check_images=false",
        "model.norm=null",
    ],
)
def test_the_ends_of_the_ranges_are_allowed(item: str) -> None:
    override(Config(), [item])


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml"):
        load_config(tmp_path / "nothing.yaml")
    file = tmp_path / "bad.yaml"
    for text, message in [
        ("a: [", "expected YAML"),
        ("- 1", "expected sections"),
        ("[]", "expected sections"),
        ("0", "expected sections"),
        ("train: 3", "train to hold names and values, got 3"),
    ]:
        file.write_text(text)
        with pytest.raises(ConfigError, match=message) as caught:
            load_config(file)
        assert "bad.yaml" in str(caught.value)


def test_step_schedule() -> None:
    factor = learning_rate_factor(TrainConfig(warmup_steps=500, warmup_ratio=0.2), 12_000)
    expected = {0: 0.2, 250: 0.6, 500: 1.0, 7_999: 1.0, 8_000: 0.1, 10_999: 0.1, 11_000: 0.01, 12_000: 0.01}
    for step, value in expected.items():
        assert factor(step) == pytest.approx(value), step


def test_cosine_schedule() -> None:
    factor = learning_rate_factor(TrainConfig(schedule="cosine", warmup_steps=0), 100)
    assert [factor(step) for step in (0, 50, 100)] == pytest.approx([1.0, 0.5, 0.0])


def test_learning_rate_is_scaled_to_the_images_of_a_step() -> None:
    train = TrainConfig(learning_rate=0.01, base_batch=16, batch_size=2, accumulate=3)
    assert scaled_learning_rate(train, 4) == pytest.approx(0.01 * 24 / 16)
    train.base_batch = None
    assert scaled_learning_rate(train, 4) == 0.01


def test_a_head_chosen_on_the_command_line_brings_its_own_defaults(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("model: {backbone: resnet18, head_channels: 64}\n")
    model = load_config(path, ["model.head=solov2_light", "train.epochs=3"]).model
    assert (model.head_channels, model.num_convs, model.max_size) == (64, 2, 768)
    assert override(load_config(path), ["model.head=decoupled"]).model.attention is None
