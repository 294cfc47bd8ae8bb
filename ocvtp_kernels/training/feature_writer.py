"""Encoding a folder of images to features on disk, in a way that may be killed and run again."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from ocvtp_kernels.files import atomic_write
from ocvtp_kernels.training.feature_encoders import ReferenceEncoder
from ocvtp_kernels.training.features import (
    FORMAT,
    MANIFEST,
    TENSOR,
    VERSION,
    FeatureFolder,
    float16_of,
    shard_name,
)
from ocvtp_kernels.version import __version__

SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
_MAX_THREADS = 16


class FeatureWriter:
    """Appends tokens to a folder of features, shard by shard.

    A shard is renamed into place before the manifest names it, so whenever the process is killed
    the folder holds all that the manifest names, and at most the shard in memory is lost.

    Args:
        output: the folder, which may hold features of the same encoder.
        encoder: whose tokens they are.
        shard_size: images in a shard.

    Attributes:
        done: sizes in bytes of the image files in the folder, by path.

    Raises:
        FileNotFoundError: a shard that the manifest names is missing.
        ValueError: the folder holds features of another encoder, or no such features.
    """

    def __init__(self, output: Path, encoder: ReferenceEncoder, shard_size: int) -> None:
        self.output, self.encoder = output, encoder
        about = {"format": FORMAT, "version": VERSION, "package_version": __version__}
        about |= encoder.identity
        self.shards: list[dict[str, Any]] = []
        self.skipped: dict[str, str] = {}
        if (output / MANIFEST).exists():
            folder = FeatureFolder(output)
            _require_same(folder.manifest, encoder.identity, output)
            folder.require_shards()
            self.shards = folder.manifest["shards"]
            self.skipped = {one["path"]: one["reason"] for one in folder.manifest["skipped"]}
        self._about, self._shard_size = about, shard_size
        self._names: list[str] = []
        self._sizes: list[int] = []
        self._buffer = torch.empty(0, encoder.num_tokens, encoder.width, dtype=torch.float16)
        for aside in (*output.glob(".features-*.safetensors"), *output.glob(".manifest-*.json")):
            aside.unlink()  # of a run that was killed while it wrote
        self.done: dict[str, int] = {
            name: size
            for shard in self.shards
            for name, size in zip(shard["images"], shard["bytes"], strict=True)
        }

    @property
    def room(self) -> int:
        """Images that the running shard still takes."""
        return self._shard_size - len(self._names)

    def add(self, name: str, size: int, tokens: Tensor) -> None:
        """Adds an image's tokens float16 ``[N, C]``; a full shard is written."""
        if not len(self._buffer):
            self._buffer = self._buffer.new_empty(self._shard_size, *tokens.shape)
        self._buffer[len(self._names)] = tokens
        self._names.append(name)
        self._sizes.append(size)
        self.skipped.pop(name, None)
        if not self.room:
            self.flush()

    def flush(self) -> None:
        """Writes the running shard, if it has images, and the manifest."""
        if self._names:
            self._write_shard()
        skipped = [{"path": name, "reason": why} for name, why in sorted(self.skipped.items())]
        text = json.dumps({**self._about, "shards": self.shards, "skipped": skipped}, indent=1)
        atomic_write(self.output / MANIFEST, text + "\n")

    def _write_shard(self) -> None:
        path = self.output / shard_name(len(self.shards))
        tokens = self._buffer[: len(self._names)]
        # Not save_file, which writes to a file of its own name first, and a kill would leave that.
        data = save({TENSOR: tokens})
        atomic_write(path, data)
        self.shards.append(
            {
                "file": path.name,
                "count": len(self._names),
                "sha256": hashlib.sha256(data).hexdigest(),
                "computed_in": self.encoder.computed_in,
                "images": self._names,
                "bytes": self._sizes,
            }
        )
        self.done |= dict(zip(self._names, self._sizes, strict=True))
        self._names, self._sizes = [], []


def find_images(folder: Path) -> list[str]:
    """Paths of the images in a folder and below, relative to it, with slashes, sorted.

    Hidden files and folders are left out, and links to folders are not followed.

    Raises:
        OSError: a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    found = []
    for at, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            (Path(at) / name).relative_to(folder).as_posix()
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    return sorted(found)


class _Prepared(NamedTuple):
    """An image that waits for its batch, or why it does not."""

    name: str
    size: int = 0
    pixels: Tensor | None = None
    reason: str = ""


def write_features(
    folder: Path,
    names: Sequence[str],
    writer: FeatureWriter,
    open_photo: Callable[[Path], Image.Image],
    batch_size: int = 16,
    report: Callable[[str, str | None], None] = lambda name, reason: None,
) -> int:
    """Encodes the images of a folder that are not in the writer's yet.

    Args:
        folder: the images' folder.
        names: their paths in it.
        writer: of the folder of features.
        open_photo: reads an image as RGB; called from several threads.
        batch_size: images encoded at once. No batch has images of two shards, so a run that was
            killed and continued encodes the same batches as one that was not.
        report: told each image that is encoded, or the reason why it is skipped.

    Returns:
        how many were skipped: not whole images, or with tokens that float16 cannot hold.

    Raises:
        ValueError: an image whose features are there has changed its size.
    """
    for name in names:
        known = writer.done.get(name)
        if known is not None and (folder / name).exists():
            size = (folder / name).stat().st_size
            if size != known:
                raise ValueError(
                    f"{printable(name)}: has {size} bytes, and the features in {writer.output} are "
                    f"of an image of {known}; choose another output"
                )
    todo = [name for name in names if name not in writer.done]
    for name in [name for name in writer.skipped if not (folder / name).exists()]:
        del writer.skipped[name]
    batch: list[_Prepared] = []
    skipped = 0

    def settle(item: _Prepared, reason: str | None) -> None:
        nonlocal skipped
        if reason is not None:
            skipped += 1
            writer.skipped[item.name] = reason
        report(item.name, reason)

    def encode() -> None:
        pixels = torch.stack([item.pixels for item in batch if item.pixels is not None])
        tokens = float16_of(writer.encoder.encode(pixels))
        finite = tokens.isfinite().flatten(1).all(dim=1).tolist()
        for item, own, fits in zip(batch, tokens, finite, strict=True):
            if fits:
                writer.add(item.name, item.size, own)
            settle(item, None if fits else "reference_tokens: expected finite float16 numbers")
        batch.clear()

    read = partial(_prepare, folder, writer.encoder, open_photo)
    with closing(_ahead(read, todo, 2 * batch_size)) as prepared:
        for item in prepared:
            if item.pixels is None:
                settle(item, item.reason)
            else:
                batch.append(item)
            if len(batch) == min(batch_size, writer.room):
                encode()
    if batch:
        encode()
    writer.flush()
    return skipped


def printable(name: str) -> str:
    """A path that any terminal takes, also where its bytes are not UTF-8."""
    return name.encode("utf-8", errors="replace").decode()


def _prepare(
    folder: Path,
    encoder: ReferenceEncoder,
    open_photo: Callable[[Path], Image.Image],
    name: str,
) -> _Prepared:
    try:
        size = (folder / name).stat().st_size
        return _Prepared(name, size, encoder.prepare(open_photo(folder / name)))
    # A broken file can make its decoder raise anything, and must not end a run of hours.
    except Exception as error:
        reason = str(error).replace(str(folder / name), name) or type(error).__name__
        return _Prepared(name, reason=printable(reason))


def _ahead(
    read: Callable[[str], _Prepared], names: Sequence[str], count: int
) -> Generator[_Prepared, None, None]:
    """What ``read`` makes of each name, in order, with ``count`` of them under way in threads."""
    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[_Prepared]] = deque()
    try:
        for name in names:
            waiting.append(pool.submit(read, name))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _require_same(manifest: dict[str, Any], identity: dict[str, Any], output: Path) -> None:
    differing = [
        f"{key} {manifest.get(key)!r}, now {value!r}"
        for key, value in identity.items()
        if manifest.get(key) != value
    ]
    if differing:
        raise ValueError(
            f"output: {output} holds features with another {'; '.join(differing)}; choose another"
        )
