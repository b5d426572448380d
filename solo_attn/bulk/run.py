"""Images in, results out: read ahead by threads, through the model in batches, written piece by piece."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from PIL.Image import fromarray

from .._utils.errors import MissingExtraError, SoloAttnError, naming_file
from ..data.windows import Windows
from ..formats import to_id_map, write_geojson, write_parquet
from ..predictor import Predictor, Result
from .files import RESULTS, Format, output_paths, save_png
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
        complete: whether the results of all shards are written.
    """

    images: int = 0
    instances: int = 0
    failed: list[str] = field(default_factory=list)
    complete: bool = False

    def add(self, record: dict[str, Any]) -> None:
        """Count a piece."""
        self.images += record["images"]
        self.instances += record["instances"]
        self.failed += record["failed"]


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
    gathers all pieces to ``results.json``; ``results.parquet`` is a folder with a file for each piece.

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
        resume: continue after what an earlier run has finished.
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
    outcome = Outcome()
    for number in pieces.mine():
        first, last = number * piece, min((number + 1) * piece, len(files))
        if pieces.done(number):
            if advance is not None:
                advance(last - first)
        else:
            writer = _Writer(predictor, formats, score, first)
            items = list(zip(files[first:last], targets[first:last], strict=True))
            _predict_piece(predictor, items, writer, batch_size, workers, advance)
            if "parquet" in formats:
                write_parquet(_part(out, number), writer.results)
            results = writer.results if "coco" in formats else []
            pieces.finish(number, {**writer.counts, "results": results})
        outcome.add(pieces.read(number))
    outcome.complete = pieces.complete()
    if outcome.complete:
        if "coco" in formats:
            pieces.gather(out / RESULTS)
        if shard.count == 1:
            pieces.remove()
    return outcome


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
            writer.failed.append((place, picture))
        if len(batch) == batch_size or place + 1 == len(items):
            for where, found in _found(predictor, batch, items):
                if isinstance(found, Result):
                    writer.add(where, *items[where], found)
                else:
                    writer.failed.append((where, found))
            batch = []
        if advance is not None:
            advance(1)


def _opened(predictor: Predictor, file: Path) -> Windows | str:
    """A picture, or what is wrong with it, which must not affect the others."""
    try:
        with naming_file(file):
            return predictor.open(file)
    except MissingExtraError:
        raise
    except SoloAttnError as error:
        return str(error)


def _found(
    predictor: Predictor,
    batch: Sequence[tuple[int, Windows]],
    items: Sequence[tuple[Path, dict[Format, Path]]],
) -> Iterator[tuple[int, Result | str]]:
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
            yield batch[0][0], str(error)
            return
        for one in batch:
            yield from _found(predictor, [one], items)
        return
    yield from zip((place for place, _ in batch), found, strict=True)


class _Writer:
    """The results of a piece's images."""

    def __init__(self, predictor: Predictor, formats: Sequence[Format], score: float, first: int) -> None:
        self.class_names, self.formats = predictor.info.class_names, formats
        self.score, self.first = score, first
        self.results: list[dict[str, Any]] = []
        self.failed: list[tuple[int, str]] = []
        self.images = self.instances = 0

    @property
    def counts(self) -> dict[str, Any]:
        """For the piece's record."""
        failed = [line for _, line in sorted(self.failed)]
        return {"images": self.images, "instances": self.instances, "failed": failed}

    def add(self, place: int, file: Path, target: dict[Format, Path], found: Result) -> None:
        """Write the instances of an image; COCO's image ids count all files from 1."""
        self.images += 1
        self.instances += len(found)
        if "coco" in self.formats or "parquet" in self.formats:
            results = found.to_coco(self.first + place + 1)
            self.results += [{**result, "file_name": str(file)} for result in results]
        if "picture" in target:
            drawn = found.draw(self.score).permute(1, 2, 0).numpy()
            save_png(fromarray(drawn), target["picture"])
        chosen = found.above(self.score)
        if "geojson" in target:
            write_geojson(target["geojson"], chosen.as_dict(rle=True), self.class_names)
        if "ids" in target:
            save_png(fromarray(to_id_map(chosen.as_dict(rle=True))), target["ids"])


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
