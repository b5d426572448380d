"""A job in pieces: each is a fixed part of the images, and is done when its record exists.

The instances of an image may depend on the other images of its batch: in the last digits, and if images of
several sizes are padded to one. A piece is therefore computed as a whole, by one shard.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._utils.errors import UsageError
from .._utils.files import replacing
from .._utils.readers import read_json
from .._utils.text import below, change

FOLDER = ".pieces"
JOB = "job.json"
BEGUN = "begun"
DIGESTS = {"images": "files", "model": "weights"}  # entries of a job that are hashes, and of what


@dataclass(frozen=True)
class Shard:
    """One of several processes that share a job.

    Attributes:
        number: from 0.
        count: of all.
    """

    number: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Shard:
        """ "2/3" is the second of three, None the only one. The ranks of torchrun divide it further.

        Raises:
            UsageError: no such shard.
        """
        found = cls()
        if text is not None:
            match = re.fullmatch(r"(\d+)/(\d+)", text)
            if match is None or not 1 <= int(match[1]) <= int(match[2]):
                raise UsageError(f"predict: expected --shard to be i/n with 1 <= i <= n, got {text!r}")
            found = cls(int(match[1]) - 1, int(match[2]))
        rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        return cls(found.number * world + rank, found.count * world)


class Pieces:
    """The records of a job's pieces, in a folder beside the results.

    Each run of the job has its own folder in it (1, 2, ...), where every shard writes a mark when it begins.
    A shard that finds its own mark in the newest folder belongs to a later run and makes the next folder;
    otherwise, and if the newest run is divided into as many shards, it takes part in that. So pieces of an
    earlier run are not used when all shards start again. If only some had started before, one that starts
    for the first time takes part in the earlier run: ``resume`` then completes the newest.

    Args:
        out: the results' folder.
        job: all that the results depend on, as JSON; pieces of another job are not used.
        count: of all pieces.
        shard: whose pieces are to be made.
        resume: keep what an earlier run of the same job has finished.

    Raises:
        UsageError: the folder has pieces of another job, which are to be resumed or are shared with other
            processes.
    """

    folder: Path
    count: int
    shard: Shard

    def __init__(self, out: Path, job: Mapping[str, Any], count: int, shard: Shard, resume: bool) -> None:
        self.count, self.shard = count, shard
        top = out / FOLDER
        if shard.count == 1 and not resume and top.exists():
            shutil.rmtree(top)
        top.mkdir(parents=True, exist_ok=True)
        run = max([1, *_runs(top)])
        if not resume and (self._mark(top / str(run)).exists() or self._other_count(top / str(run))):
            run += 1
        self.folder = top / str(run)
        self.folder.mkdir(exist_ok=True)
        wanted = json.loads(json.dumps(job))
        found = self._job()
        if found is not None and found != wanted:
            raise UsageError(
                f"predict: expected --out to be a folder of the same job, got {out}, of another one "
                f"(old -> new):{below(_changes(found, wanted))}\ngive another folder, or remove {top}"
            )
        with replacing(self.folder / JOB) as temporary:
            temporary.write_text(json.dumps(wanted), encoding="utf-8")
        self._mark(self.folder).touch()

    def _mark(self, folder: Path) -> Path:
        return folder / f"{BEGUN}-{self.shard.number + 1}-of-{self.shard.count}"

    def _other_count(self, folder: Path) -> bool:
        """Whether shards of another division have begun there."""
        ending = f"-of-{self.shard.count}"
        return any(not mark.name.endswith(ending) for mark in folder.glob(f"{BEGUN}-*"))

    def _job(self) -> Any:
        path = self.folder / JOB
        return read_json(path, UsageError) if path.exists() else None

    def path(self, number: int) -> Path:
        """Path of a piece's record."""
        return self.folder / f"{number:06d}.json"

    def mine(self) -> range:
        """This shard's pieces."""
        return range(self.shard.number, self.count, self.shard.count)

    def done(self, number: int) -> bool:
        """Whether a piece has its record."""
        return self.path(number).exists()

    def finish(self, number: int, record: Mapping[str, Any]) -> None:
        """Write a piece's record, after all its other files."""
        with replacing(self.path(number), durable=True) as temporary:
            temporary.write_text(json.dumps(record), encoding="utf-8")

    def read(self, number: int) -> dict[str, Any]:
        """A piece's record.

        Raises:
            UsageError: it cannot be read.
        """
        found: dict[str, Any] = read_json(self.path(number), UsageError)
        return found

    def complete(self) -> bool:
        """Whether every shard's pieces are done."""
        return all(self.done(number) for number in range(self.count))

    def every(self, key: str) -> Iterator[Any]:
        """The entries of a list in all records, with one record in memory at a time."""
        for number in range(self.count):
            yield from self.read(number)[key]

    def remove(self) -> None:
        """Remove the records, once a run without other shards has written its results."""
        shutil.rmtree(self.folder.parent)


def _changes(found: Any, wanted: Mapping[str, Any]) -> list[str]:
    """In what two jobs differ; settings of the model each by itself."""
    if not isinstance(found, dict):
        return ["the form of its record"]
    told = []
    for key, now in wanted.items():
        was = found.get(key)
        if was == now:
            continue
        if isinstance(was, dict) and isinstance(now, dict):
            told += [change(name, was.get(name), now[name]) for name in now if was.get(name) != now[name]]
        elif key in DIGESTS:
            told.append(f"{key}: other {DIGESTS[key]}")
        else:
            told.append(change(key, was, now))
    return told or ["the form of its record"]


def _runs(top: Path) -> list[int]:
    return [int(path.name) for path in top.iterdir() if path.name.isdecimal()]
