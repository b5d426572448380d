"""The order of the images and their random augmentation, as functions of (seed, epoch, index).

Nothing here depends on how many workers load the images or on where an earlier process was killed, so a
resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from ..data import CocoInstances, CopyPaste, classes_differ, collate, eval_transforms, train_transforms
from ..data.validate import raise_faults
from ..models.solo import resized_size
from .config import Config, ConfigError


def mix(*parts: int) -> int:
    """One 32-bit seed out of several numbers, such as (seed, epoch, index)."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


class PositionSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index), reshuffled in each epoch, starting after ``batches_done``.

    Each epoch is padded with its own first images to whole batches on all ranks, so that without weights
    every image comes at least once in each epoch. Rank r takes every world-th image from the r-th on: what
    all ranks see in one step is what one process with the larger batch sees.

    Args:
        length: images in the dataset.
        batch_size: images of a batch on one rank.
        seed: of the order.
        rank: of this process.
        world_size: processes that train together.
        weights: draw images with probabilities proportional to these [length] and with replacement, or None.
    """

    length: int
    batch_size: int
    seed: int
    rank: int
    world_size: int
    weights: Tensor | None
    batches_per_epoch: int

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        weights: Tensor | None = None,
    ) -> None:
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.rank, self.world_size, self.weights = rank, world_size, weights
        self.batches_per_epoch = math.ceil(length / (batch_size * world_size))
        self.batches_done = 0

    def __len__(self) -> int:
        return self.batches_per_epoch * self.batch_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # The position is read here and not at the first item: workers start to fetch before that.
        epoch, skip = divmod(self.batches_done, self.batches_per_epoch)
        generator = torch.Generator().manual_seed(mix(self.seed, epoch))
        if self.weights is None:
            order = torch.randperm(self.length, generator=generator).tolist()
        else:
            order = torch.multinomial(
                self.weights, self.length, replacement=True, generator=generator
            ).tolist()
        total = len(self) * self.world_size
        order = (order * math.ceil(total / self.length))[:total]
        mine = order[self.rank :: self.world_size][skip * self.batch_size :]
        return iter([(epoch, index) for index in mine])


class SeededDataset(Dataset[Any]):
    """``dataset[index]`` under random states that depend on (seed, epoch, index) only."""

    dataset: Dataset[Any]
    seed: int

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, position: tuple[int, int]) -> Any:
        epoch, index = position
        seed = mix(self.seed, epoch, index)
        python_state = random.getstate()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            random.seed(seed)
            try:
                return self.dataset[index]
            finally:
                random.setstate(python_state)


def evaluated(config: Config, images: str, annotations: str) -> CocoInstances:
    """A part of the data that is not trained on, as the training of ``config`` evaluates it.

    Raises:
        DatasetError: see `CocoInstances`.
    """
    return CocoInstances(
        images,
        annotations,
        eval_transforms(),
        on_degenerate=config.data.on_degenerate,
        percentiles=config.model.percentiles,
    )


class SOLODataModule(pl.LightningDataModule):
    """Training, validation and test images of a `Config`; `setup` reads them.

    Attributes:
        test_set: None where the configuration names none.

    Raises:
        ConfigError: a path that is not given, or transforms that cannot be made.
    """

    config: Config
    train_set: CocoInstances
    val_set: CocoInstances
    test_set: CocoInstances | None
    batches_done: int

    def __init__(self, config: Config) -> None:
        super().__init__()
        data, self.config = config.data, config
        for key in ("train_images", "train_annotations", "val_images", "val_annotations"):
            if not getattr(data, key):
                raise ConfigError(f"config: expected data.{key} to be a path, got nothing")
        if bool(data.test_images) != bool(data.test_annotations):
            raise ConfigError(
                "config: expected both data.test_images and data.test_annotations or neither, got "
                f"{data.test_images!r} and {data.test_annotations!r}"
            )
        try:
            self._augmentation = train_transforms(
                rotate90=data.rotate90,
                shortest_size=data.shortest_size,
                canvas=data.canvas,
                flip=data.flip,
                scale_jitter=data.scale_jitter,
                crop_size=data.crop_size,
                colour=data.colour,
                vertical_flip=data.vertical_flip,
                min_area=data.min_area,
            )
        except ValueError as error:
            raise ConfigError(f"config: the section data does not make transforms: {error}") from error
        self.batches_done = 0
        self._sampler: PositionSampler | None = None
        self._read = False

    def setup(self, stage: str | None = None) -> None:
        """Read and check the annotations of all parts, once; Lightning calls it again for each stage.

        Raises:
            DatasetError: folders or annotations that cannot be read, or images too thin for the model.
            ConfigError: a path that is not there; other categories in one part than in training.
        """
        if self._read:
            return
        self._refuse_missing()
        config, data = self.config, self.config.data
        self.train_set = CocoInstances(
            data.train_images,
            data.train_annotations,
            self._augmentation,
            on_degenerate=data.on_degenerate,
            percentiles=config.model.percentiles,
        )
        self.val_set = self._evaluated(data.val_images, data.val_annotations)
        self.test_set = (
            self._evaluated(data.test_images, data.test_annotations) if data.test_annotations else None
        )
        sizes = config.model.sizes
        if data.crop_size is None and data.canvas is None and config.model.resize_in_training:
            # Of several lengths the smallest leaves the fewest pixels.
            self._refuse_thin(self.train_set, min(sizes))
        for part in (self.val_set, self.test_set):
            if part is not None:
                self._refuse_thin(part, sizes[-1])
        self._read = True

    def _refuse_missing(self) -> None:
        """Refuse paths that are not there: whoever uses a configuration of the clone may lack its data."""
        for part in ("train", "val", "test"):
            for key, kind in ((f"{part}_images", "folder"), (f"{part}_annotations", "file")):
                path = getattr(self.config.data, key)
                if path and not Path(path).exists():
                    raise ConfigError(
                        f"config: expected data.{key} to be a {kind}, got {path}, which is not there; the "
                        "first lines of a configuration and docs/data.md say where its data comes from"
                    )

    def _refuse_thin(self, dataset: CocoInstances, min_size: int) -> None:
        """Refuse images of which the model's resizing would leave nothing: it would reach them hours later.

        Before augmentation: what ``data.scale_jitter`` makes of training images is random, and the model
        checks it.
        """
        max_size = self.config.model.max_size
        entries = [dataset.coco.imgs[image_id] for image_id in dataset.image_ids]
        raise_faults(
            dataset.annotations,
            [
                f"{dataset.images / str(entry['file_name'])} (image id {entry['id']}): expected sides of a "
                f"pixel or more at model.min_size {min_size}, model.max_size {max_size}, got "
                f"{entry['width']} x {entry['height']}"
                for entry in entries
                if min(resized_size((entry["height"], entry["width"]), min_size, max_size)) < 1
            ],
        )

    def _evaluated(self, images: str, annotations: str) -> CocoInstances:
        """`evaluated`, with the classes of the training images."""
        found = evaluated(self.config, images, annotations)
        if difference := classes_differ(self.train_set.categories, found.categories):
            raise ConfigError(
                f"{annotations}: expected the categories of {self.config.data.train_annotations}, got "
                f"{difference}"
            )
        return found

    def total_steps(self, world_size: int) -> int:
        """Optimizer steps of the whole run."""
        train = self.config.train
        if train.max_steps is not None:
            return train.max_steps
        batches = math.ceil(len(self.train_set) / (train.batch_size * world_size))
        return train.epochs * math.ceil(batches / train.accumulate)

    @property
    def epochs_begun(self) -> int:
        """Passes over the training images so far, including the current one."""
        return 0 if self._sampler is None else math.ceil(self.batches_done / self._sampler.batches_per_epoch)

    def batch_taken(self) -> None:
        """Count a batch: the position that a checkpoint holds."""
        self.batches_done += 1
        if self._sampler is not None:
            self._sampler.batches_done = self.batches_done

    def state_dict(self) -> dict[str, Any]:
        """The position in the order of the images."""
        return {"batches_done": self.batches_done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from where the checkpoint was written."""
        self.batches_done = state_dict["batches_done"]

    def train_dataloader(self) -> DataLoader[Any]:
        """This rank's share of the training images."""
        seed, batch_size = self.config.train.seed, self.config.train.batch_size
        rank, world_size = self._ranks()
        weights = self._weights()
        self._sampler = PositionSampler(len(self.train_set), batch_size, seed, rank, world_size, weights)
        self._sampler.batches_done = self.batches_done
        dataset = CopyPaste(self.train_set, self.config.data.copy_paste)
        return self._loader(SeededDataset(dataset, seed), batch_size, self._sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        """This rank's share of the validation images: every image on one rank, none on two."""
        rank, world_size = self._ranks()
        share = Subset(self.val_set, range(rank, len(self.val_set), world_size))
        return self._loader(share, self.config.train.eval_batch_size, None)

    def _weights(self) -> Tensor | None:
        """The weights with which images are drawn; None if each comes once an epoch."""
        power, found = self.config.data.sample_power, self.train_set
        if power == 0:
            return None
        objects = [len(found.objects_of(image_id)) for image_id in found.image_ids]
        return (torch.tensor(objects, dtype=torch.float64) + 1) ** power

    def _ranks(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _loader(
        self, dataset: Dataset[Any], batch_size: int, sampler: PositionSampler | None
    ) -> DataLoader[Any]:
        workers = self.config.data.workers
        return DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
