"""Images in, results out: read ahead by threads, through the model in batches, written piece by piece."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from PIL.Image import fromarray

from .._utils.errors import MissingExtraError, SoloAttnError, naming_file, of_memory
from ..data.windows import Windows
from ..formats import (
    coco_annotations,
    local_file,
    to_id_map,
    to_label_studio,
    write_dataset,
    write_geojson,
    write_label_studio,
    write_parquet,
    write_results,
)
from ..predictor import Predictor, Result
from .files import WHOLE, Format, output_paths, save_png
from .pieces import Pieces, Shard

T = TypeVar("T")
R = TypeVar("R")
PARQUET = "results.parquet"
ALONE = Shard()


@dataclass
class Outcome:
    """The work of a run, including pieces that an earlier run had finished.

    Attributes:
        images: the number of predicted images.
        instances: the number of instances in them.
        failed: one line for each file that could not be predicted.
        again: whether memory was too small for one of these; ``resume`` predicts its piece again.
        complete: whether the results of all shards are written.
    """

    images: int = 0
    instances: int = 0
    failed: list[str] = field(default_factory=list)
    again: bool = False
    complete: bool = False

    def add(self, record: dict[str, Any]) -> None:
        """Count a piece."""
        self.images += record["images"]
        self.instances += record["instances"]
        self.failed += record["failed"]
        self.again |= record["again"]


def predict_files(
    predictor: Predictor,
    files: Sequence[Path],
    out: Path,
    *,
    formats: Sequence[Format],
    score: float = 0.3,
    batch_size: int = 1,
    workers: int = 2,
    piece: int = 64,
    shard: Shard = ALONE,
    resume: bool = False,
    advance: Callable[[int], None] | None = None,
) -> Outcome:
    """Predict image files, and write what is found.

    The files are divided into pieces, and shard i of n makes the pieces i, i + n, ... . A killed run has
    whole pieces and, of one that was not finished, files that are written again. The shard that comes last
    gathers all pieces to the files of `WHOLE`; ``results.parquet`` is a folder with a file for each piece.

    Args:
        predictor: the model.
        files: the same list, in the same order, for every shard.
        out: folder for the results.
        formats: what to write.
        score: leave lower scores out of what is written for each image.
        batch_size: images that go through the model at a time, padded to one size.
        workers: threads that read images ahead; 0 reads them when they are wanted.
        piece: images of a piece.
        shard: this process's part.
        resume: continue after what an earlier run has finished, except pieces that ran out of memory.
        advance: called with 1 after each image that was read, and with the images of a piece done before.

    Raises:
        UsageError: ``out`` holds an image of ``files`` that would be overwritten, or pieces of another job.
        OSError: ``out`` cannot be written.
    """
    targets = output_paths(list(files), out, list(formats))
    out.mkdir(parents=True, exist_ok=True)
    job = _job(predictor, files, formats, score, batch_size, piece)
    pieces = Pieces(out, job, -(-len(files) // piece), shard, resume)
    if "parquet" in formats:
        (out / PARQUET).mkdir(exist_ok=True)
        wanted = {_part(out, number) for number in range(pieces.count)}
        for path in set((out / PARQUET).glob("part-*.parquet")) - wanted:
            path.unlink(missing_ok=True)  # of an earlier job with more images; other shards may be faster
    outcome, names = Outcome(), _names(files)
    for number in pieces.mine():
        first, last = number * piece, min((number + 1) * piece, len(files))
        if pieces.done(number) and not pieces.read(number)["again"]:
            if advance is not None:
                advance(last - first)
        else:
            writer = _Writer(predictor, formats, score, first, names[first:last])
            items = list(zip(files[first:last], targets[first:last], strict=True))
            _predict_piece(predictor, items, writer, batch_size, workers, advance)
            if "parquet" in formats:
                write_parquet(_part(out, number), writer.results)
            pieces.finish(number, writer.record)
        outcome.add(pieces.read(number))
    outcome.complete = pieces.complete()
    if outcome.complete:
        _gather(predictor, pieces, out, formats, score)
        if shard.count == 1 and not outcome.again:
            pieces.remove()
    return outcome


def _gather(predictor: Predictor, pieces: Pieces, out: Path, formats: Sequence[Format], score: float) -> None:
    info = predictor.info
    if "coco" in formats:
        write_results(out / WHOLE["coco"], pieces.every("results"))
    if "coco-dataset" in formats:
        categories = [
            {"id": k, "name": name} for k, name in zip(info.category_ids, info.class_names, strict=True)
        ]
        annotations = coco_annotations(pieces.every("results"), score)
        write_dataset(out / WHOLE["coco-dataset"], pieces.every("pictures"), annotations, categories)
    if "label-studio" in formats:
        write_label_studio(out / WHOLE["label-studio"], pieces.every("tasks"), info.class_names)


def _names(files: Sequence[Path]) -> list[str]:
    """The paths of the files, relative to their common folder."""
    whole = [Path(os.path.abspath(file)) for file in files]
    folder = os.path.commonpath([file.parent for file in whole]) if whole else ""
    return [file.relative_to(folder).as_posix() for file in whole]


def _part(out: Path, number: int) -> Path:
    return out / PARQUET / f"part-{number:06d}.parquet"


def _job(
    predictor: Predictor,
    files: Sequence[Path],
    formats: Sequence[Format],
    score: float,
    batch_size: int,
    piece: int,
) -> dict[str, Any]:
    """Everything that the output depends on, except for the content of the files."""
    weights = hashlib.sha256()
    for name, tensor in predictor.model.state_dict().items():
        weights.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return {
        "images": hashlib.sha256("\n".join(map(str, files)).encode()).hexdigest(),
        "model": weights.hexdigest(),
        "settings": predictor.model.settings.as_dict(),
        "formats": sorted(set(formats)),
        "score": score,
        "batch_size": batch_size,
        "piece": piece,
    }


def _predict_piece(
    predictor: Predictor,
    items: Sequence[tuple[Path, dict[Format, Path]]],
    writer: _Writer,
    batch_size: int,
    workers: int,
    advance: Callable[[int], None] | None,
) -> None:
    opened = ahead(lambda item: _opened(predictor, item[0]), items, workers)
    batch: list[tuple[int, Windows]] = []
    for place, picture in enumerate(opened):
        if isinstance(picture, Windows):
            batch.append((place, picture))
        else:
            writer.fail(place, items[place][1], *picture)
        if len(batch) == batch_size or place + 1 == len(items):
            for where, found in _found(predictor, batch, items):
                if isinstance(found, Result):
                    writer.add(where, *items[where], found)
                else:
                    writer.fail(where, items[where][1], *found)
            batch = []
        if advance is not None:
            advance(1)


Fault = tuple[str, bool]
"""What is wrong with a picture, and whether it is a lack of memory."""


def _opened(predictor: Predictor, file: Path) -> Windows | Fault:
    """A picture, or what is wrong with it, which must not affect the others."""
    try:
        with naming_file(file):
            return predictor.open(file)
    except MissingExtraError:
        raise
    except SoloAttnError as error:
        return str(error), of_memory(error)


def _found(
    predictor: Predictor,
    batch: Sequence[tuple[int, Windows]],
    items: Sequence[tuple[Path, dict[Format, Path]]],
) -> Iterator[tuple[int, Result | Fault]]:
    """The results of a batch; if the model fails on it, of each picture alone."""
    if not batch:
        return
    try:
        with naming_file(items[batch[0][0]][0]):
            found = predictor.find([picture for _, picture in batch])
    except MissingExtraError:
        raise
    except SoloAttnError as error:
        if len(batch) == 1:
            yield batch[0][0], (str(error), of_memory(error))
            return
        for one in batch:
            yield from _found(predictor, [one], items)
        return
    yield from zip((place for place, _ in batch), found, strict=True)


class _Writer:
    """The results of a piece's images."""

    def __init__(
        self,
        predictor: Predictor,
        formats: Sequence[Format],
        score: float,
        first: int,
        names: Sequence[str],
    ) -> None:
        self.class_names, self.formats = predictor.info.class_names, formats
        self.score, self.first, self.names = score, first, names
        self.results: list[dict[str, Any]] = []
        self.pictures: list[dict[str, Any]] = []
        self.tasks: list[dict[str, Any]] = []
        self.failed: list[tuple[int, str, bool]] = []
        self.instances = 0

    @property
    def record(self) -> dict[str, Any]:
        """The piece's record."""
        listed = {"coco", "coco-dataset"}.intersection(self.formats)
        return {
            "images": len(self.pictures),
            "instances": self.instances,
            "failed": [line for _, line, _ in sorted(self.failed)],
            "again": any(full for _, _, full in self.failed),
            "results": self.results if listed else [],
            "pictures": self.pictures,
            "tasks": self.tasks,
        }

    def fail(self, place: int, target: dict[Format, Path], fault: str, full: bool) -> None:
        """Note what is wrong with an image, and remove an earlier run's results of it."""
        self.failed.append((place, fault, full))
        for path in target.values():
            path.unlink(missing_ok=True)

    def add(self, place: int, file: Path, target: dict[Format, Path], found: Result) -> None:
        """Write the instances of an image; COCO's image ids count all files from 1."""
        try:
            with naming_file(file):  # an image that is read by windows is read again here
                drawn = found.draw(self.score).permute(1, 2, 0).numpy() if "picture" in target else None
        except MissingExtraError:
            raise
        except SoloAttnError as error:
            self.fail(place, target, str(error), of_memory(error))
            return
        image_id, (height, width) = self.first + place + 1, found.picture.size
        entry = {"id": image_id, "file_name": self.names[place], "height": height, "width": width}
        self.pictures.append(entry)
        self.instances += len(found)
        if {"coco", "coco-dataset", "parquet"}.intersection(self.formats):
            results = found.to_coco(image_id)
            self.results += [{**result, "file_name": str(file)} for result in results]
        if drawn is not None:
            save_png(fromarray(drawn), target["picture"])
        chosen = found.above(self.score).as_dict(rle=True)
        if "geojson" in target:
            write_geojson(target["geojson"], chosen, self.class_names)
        if "label-studio" in self.formats:
            image = local_file(self.names[place])
            self.tasks.append(to_label_studio(chosen, self.class_names, (height, width), image))
        if "ids" in target:
            save_png(fromarray(to_id_map(chosen)), target["ids"])


def ahead(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """``map`` in order, by threads that are a few items ahead of the consumer.

    Threads are enough: PIL, tifffile and NumPy release the interpreter's lock.
    """
    if workers == 0:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
