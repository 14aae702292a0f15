"""Journals: what a stage under way has done so far, record by record, so that a kill costs little.

A journal is a list of records that only grows. Each record is handed to the system as soon as it is
made, so that it outlives the process; every few seconds it is on the disk, too, and in the bucket
of a workdir that has one. Journals lie among a stage's step checkpoints: they belong to its key,
outlive the process, and go when the artefact is sealed.

Each attempt writes files of its own, which say at which record they begin: the end of a file may be
torn, and a process that was taken for dead may still write to its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import struct
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from subtransfer.runtime.json_files import canonical_json
from subtransfer.store import buckets
from subtransfer.store.files import reading, vanished
from subtransfer.store.workdir import JOURNALS, opened, steps_folder

_MAGIC = b"subtransfer journal 1\n"
_FRAME = struct.Struct("<II")  # bytes of a record, and their CRC-32
_uploading = threading.Lock()  # several threads may have a journal each


@dataclasses.dataclass(frozen=True)
class Journals:
    """The journals of one stage, or of one part of it.

    Attributes:
      artifact: the folder of the stage's artefact, made or not.
      label: what is being made, for messages.
      every_seconds: between two times that what was written is on the disk; 0 is at the end only.
      part: of the stage; "" is all of it.
    """

    artifact: Path
    label: str
    every_seconds: float
    part: str = ""

    def of(self, part: str) -> Journals:
        """Returns the journals of a part of this, which has a name of its own."""
        label = f"{self.label}, {part}"
        return dataclasses.replace(self, part=f"{self.part}{part}.", label=label)

    def open(self, name: str, header: Mapping[str, Any]) -> Journal:
        """Reads a journal and prepares to go on with it.

        Args:
          name: unique in this part.
          header: what the records rest on (JSON); those that rest on something else do not count.

        Raises:
          UserError: it cannot be read now.
        """
        return Journal(self.artifact, f"{self.part}{name}", header, self.every_seconds)


class Journal:
    """One journal; made by `Journals.open`. Used by one thread at a time.

    Attributes:
      records: what earlier attempts have written, in order.
      others: whether there are records that rest on something else.
    """

    def __init__(self, artifact: Path, name: str, header: Mapping[str, Any], every_seconds: float):
        self._workdir = artifact.parent
        self._folder = steps_folder(artifact) / JOURNALS
        self._was_opened = opened(self._workdir)  # who works without a store has no workdir opened
        self._name, self._header, self._every = name, canonical_json(header), every_seconds
        self._file, self._part = -1, 0
        self.others = False
        self.records: list[bytes] = []
        # Two machines may count the same attempt: by its token each has files of its own.
        self._attempt = f"{self._read() + 1:06d}.{secrets.token_hex(4)}"
        self._count = len(self.records)
        self._synced = time.monotonic()

    def _read(self) -> int:
        """Reads all files; returns the number of the last attempt, or -1."""
        last = -1
        # In the order of attempts, then of their parts: numbers have a fixed width.
        for path in sorted(self._folder.glob(f"{self._name}.[0-9]*.log")):
            last = int(path.name[len(self._name) + 1 :].partition(".")[0])
            with reading(path):
                data = path.read_bytes()
            frames = _frames(data)
            begin = next(frames, None)
            if begin is None:  # torn before it began
                continue
            told = json.loads(begin)
            if told["header"] != self._header:
                self.others = True
            elif told["first"] <= len(self.records):
                # A later attempt counts where an earlier one went on although it was given up.
                del self.records[told["first"] :]
                self.records.extend(frames)
        return last

    def cut(self, count: int) -> None:
        """Leaves out all records but the first `count`; to be called before the first `append`."""
        del self.records[count:]
        self._count = count

    def append(self, record: bytes) -> None:
        """Adds a record: from here on it outlives this process.

        Raises:
          UserError: the workdir has vanished, or the bucket cannot be reached.
          OSError: the system cannot write.
        """
        if self._file < 0:
            self._begin()
        self._write(record)
        self._count += 1
        if self._every and time.monotonic() - self._synced >= self._every:
            self._sync()

    def _begin(self) -> None:
        """Begins a file."""
        # Level by level: a workdir that has vanished is not to be made again.
        for folder in (self._folder.parent.parent, self._folder.parent, self._folder):
            if not self._workdir.is_dir() or opened(self._workdir) != self._was_opened:
                raise vanished(self._workdir)
            folder.mkdir(exist_ok=True)
        path = self._folder / f"{self._name}.{self._attempt}.{self._part:06d}.log"
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)
        self._file = os.open(path, flags, 0o666)
        self._part += 1
        os.write(self._file, _MAGIC)
        self._write(json.dumps({"header": self._header, "first": self._count}).encode())

    def _write(self, record: bytes) -> None:
        data = _FRAME.pack(len(record), zlib.crc32(record)) + record
        while data:
            data = data[os.write(self._file, data) :]

    def _sync(self) -> None:
        """Puts what was written onto the disk; what follows goes into another file.

        A file that has an end is copied to a bucket once.
        """
        if self._file < 0:
            return
        try:
            os.fsync(self._file)
        finally:
            os.close(self._file)
            self._file = -1
        with _uploading:
            buckets.put_files(self._workdir)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Puts everything onto the disk."""
        self._sync()


def _frames(data: bytes) -> Iterator[bytes]:
    """The records of a file, up to one that is torn or damaged."""
    if not data.startswith(_MAGIC):
        return
    at = len(_MAGIC)
    while len(data) - at >= _FRAME.size:
        size, checksum = _FRAME.unpack_from(data, at)
        at += _FRAME.size
        record = data[at : at + size]
        if len(record) < size or zlib.crc32(record) != checksum:
            return
        yield record
        at += size
