"""Encoding a folder of images to features on disk; a killed run can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from ocvtp_kernels.files import atomic_write
from ocvtp_kernels.training.data import read_ahead
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

    A shard is complete before the manifest names it, so a killed process loses at most the shard in
    memory.

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
        # A run that was killed may have left temporary files.
        for path in (*output.glob(".features-*.safetensors"), *output.glob(".manifest-*.json")):
            path.unlink()
        self.done: dict[str, int] = {
            name: size
            for shard in self.shards
            for name, size in zip(shard["images"], shard["bytes"], strict=True)
        }

    @property
    def remaining(self) -> int:
        """Images that the current shard still takes."""
        return self._shard_size - len(self._names)

    def add(self, name: str, size: int, tokens: Tensor) -> None:
        """Adds an image's tokens float16 ``[N, C]``; a full shard is written."""
        if not len(self._buffer):
            self._buffer = self._buffer.new_empty(self._shard_size, *tokens.shape)
        self._buffer[len(self._names)] = tokens
        self._names.append(name)
        self._sizes.append(size)
        self.skipped.pop(name, None)
        if not self.remaining:
            self.flush()

    def flush(self) -> None:
        """Writes the current shard, if it has images, and the manifest."""
        if self._names:
            self._write_shard()
        skipped = [{"path": name, "reason": why} for name, why in sorted(self.skipped.items())]
        text = json.dumps({**self._about, "shards": self.shards, "skipped": skipped}, indent=1)
        atomic_write(self.output / MANIFEST, text + "\n")

    def _write_shard(self) -> None:
        path = self.output / shard_name(len(self.shards))
        tokens = self._buffer[: len(self._names)]
        # Not save_file: its own temporary file would stay if the process is killed.
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

    names = []
    for at, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [
            (Path(at) / name).relative_to(folder).as_posix()
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    return sorted(names)


class _Prepared(NamedTuple):
    """An image ready for its batch, or the reason why it is skipped."""

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
        report: called with each image's name, and the reason if it is skipped.

    Returns:
        how many were skipped: not whole images, or with tokens that float16 cannot hold.

    Raises:
        ValueError: an image whose features are there has changed its size.
    """
    for name in names:
        recorded = writer.done.get(name)
        if recorded is not None and (folder / name).exists():
            size = (folder / name).stat().st_size
            if size != recorded:
                raise ValueError(
                    f"{printable(name)}: has {size} bytes, and the features in {writer.output} are "
                    f"of an image of {recorded}; choose another output"
                )
    todo = [name for name in names if name not in writer.done]
    for name in [name for name in writer.skipped if not (folder / name).exists()]:
        del writer.skipped[name]
    batch: list[_Prepared] = []
    skipped = 0

    def finish(item: _Prepared, reason: str | None) -> None:
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
            finish(item, None if fits else "reference_tokens: expected finite float16 numbers")
        batch.clear()

    read = partial(_prepare, folder, writer.encoder, open_photo)
    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    with closing(read_ahead(read, todo, 2 * batch_size, threads)) as prepared:
        for item in prepared:
            if item.pixels is None:
                finish(item, item.reason)
            else:
                batch.append(item)
            if len(batch) == min(batch_size, writer.remaining):
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
    # A broken file can make its decoder raise anything; it must not end the run.
    except Exception as error:
        reason = str(error).replace(str(folder / name), name) or type(error).__name__
        return _Prepared(name, reason=printable(reason))


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
