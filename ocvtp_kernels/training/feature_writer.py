"""Encoding a folder of images to features on disk; a killed run can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from ocvtp_kernels.files import atomic_write
from ocvtp_kernels.text import describe_error, one_line
from ocvtp_kernels.training.data import read_ahead
from ocvtp_kernels.training.feature_encoders import ReferenceEncoder
from ocvtp_kernels.training.features import (
    FORMAT,
    MANIFEST,
    TENSOR,
    THREADS,
    VERSION,
    FeatureFolder,
    ImageFile,
    float16_of,
    sha256_of,
    shard_name,
)
from ocvtp_kernels.version import __version__

SUFFIXES = frozenset(
    (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)


class FeatureWriter:
    """Appends tokens to a folder of features, shard by shard.

    A shard is complete before the manifest names it, so a killed process loses at most the shard in
    memory.

    Args:
        output: the folder, which may hold features of the same encoder.
        encoder: whose tokens they are.
        shard_size: images in a shard.

    Attributes:
        done: what is recorded of the files of the images in the folder, by path.

    Raises:
        FileNotFoundError: a shard that the manifest names is missing.
        ValueError: the folder holds features of another encoder, or no such features, or a shard is
            not what the manifest says.
    """

    def __init__(self, output: Path, encoder: ReferenceEncoder, shard_size: int) -> None:
        self.output, self.encoder = output, encoder
        about = {"format": FORMAT, "version": VERSION, "package_version": __version__}
        about |= encoder.identity
        self.shards: list[dict[str, Any]] = []
        self.done: dict[str, ImageFile] = {}
        self.skipped: dict[str, str] = {}
        if (output / MANIFEST).exists():
            folder = FeatureFolder(output)
            _require_same(folder.manifest, encoder.identity, output)
            folder.verify()
            self.done = folder.image_files()
            self.shards = folder.manifest["shards"]
            self.skipped = {one["path"]: one["reason"] for one in folder.manifest["skipped"]}
        self._about, self._shard_size = about, shard_size
        self._pending: dict[str, ImageFile] = {}
        self._buffer = torch.empty(0, encoder.num_tokens, encoder.width, dtype=torch.float16)
        # A run that was killed may have left temporary files.
        for path in (*output.glob(".features-*.safetensors"), *output.glob(".manifest-*.json")):
            path.unlink()

    @property
    def remaining(self) -> int:
        """Images that the current shard still takes."""
        return self._shard_size - len(self._pending)

    def add(self, name: str, file: ImageFile, tokens: Tensor) -> None:
        """Adds an image's tokens float16 ``[N, C]``; a full shard is written."""
        if not len(self._buffer):
            self._buffer = self._buffer.new_empty(self._shard_size, *tokens.shape)
        self._buffer[len(self._pending)] = tokens
        self._pending[name] = file
        self.skipped.pop(name, None)
        if not self.remaining:
            self.flush()

    def flush(self) -> None:
        """Writes the current shard, if it has images, and the manifest."""
        if self._pending:
            self._write_shard()
        skipped = [{"path": name, "reason": why} for name, why in sorted(self.skipped.items())]
        text = json.dumps({**self._about, "shards": self.shards, "skipped": skipped}, indent=1)
        atomic_write(self.output / MANIFEST, text + "\n")

    def _write_shard(self) -> None:
        path = self.output / shard_name(len(self.shards))
        tokens = self._buffer[: len(self._pending)]
        # Not save_file: its own temporary file would stay if the process is killed.
        data = save({TENSOR: tokens})
        atomic_write(path, data)
        self.shards.append(
            {
                "file": path.name,
                "count": len(self._pending),
                "sha256": hashlib.sha256(data).hexdigest(),
                "computed_in": self.encoder.computed_in,
                "images": list(self._pending),
                "bytes": [file.size for file in self._pending.values()],
                "image_sha256": [file.sha256 for file in self._pending.values()],
            }
        )
        self.done |= self._pending
        self._pending = {}


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
    reason: str = ""
    pixels: Tensor | None = None
    file: ImageFile = ImageFile(0, None)


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
        ValueError: an image whose features are there has changed.
    """
    there = [name for name in names if name in writer.done and (folder / name).exists()]
    with closing(find_changes(folder, writer.done, there)) as changes:
        for name, change in changes:
            raise ValueError(
                f"{one_line(name)}: {change}, so it is not the image that the features in"
                f" {writer.output} are of; choose another output"
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
                writer.add(item.name, item.file, own)
            finish(item, None if fits else "reference_tokens: expected finite float16 numbers")
        batch.clear()

    read = partial(_prepare, folder, writer.encoder, open_photo)
    with closing(read_ahead(read, todo, 2 * batch_size, THREADS)) as prepared:
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


def find_changes(
    folder: Path, recorded: Mapping[str, ImageFile], names: Sequence[str]
) -> Generator[tuple[str, str], None, None]:
    """Which images of a folder are not those that were recorded: their names, and how they differ.

    Files are read whole, several at a time, but for those of whose contents there is no record,
    whose sizes alone are compared.

    Args:
        folder: the images' folder.
        recorded: what is recorded of each, by its path in the folder.
        names: which to look at.
    """

    def compare(name: str) -> tuple[str, str]:
        return name, _change(folder / name, recorded[name])

    with closing(read_ahead(compare, names, 2 * THREADS, THREADS)) as compared:
        bar = tqdm(compared, "comparing", len(names), leave=False, unit="image", delay=2)
        yield from ((name, change) for name, change in bar if change)


def _prepare(
    folder: Path,
    encoder: ReferenceEncoder,
    open_photo: Callable[[Path], Image.Image],
    name: str,
) -> _Prepared:
    path = folder / name
    try:
        file = _record(path)
        pixels = encoder.prepare(open_photo(path))
        # Read again, so that what is recorded is what was decoded.
        if _record(path) != file:
            return _Prepared(name, "was changed while it was read")
        return _Prepared(name, pixels=pixels, file=file)
    # A broken file can make its decoder raise anything; it must not end the run.
    except Exception as error:
        return _Prepared(name, describe_error(error).replace(one_line(str(path)), one_line(name)))


def _record(path: Path) -> ImageFile:
    return ImageFile(path.stat().st_size, sha256_of(path))


def _change(path: Path, recorded: ImageFile) -> str:
    """How a file differs from the recorded one, nothing if it does not."""
    try:
        size = path.stat().st_size
        if size != recorded.size:
            return f"has {size} bytes, not {recorded.size}"
        if recorded.sha256 is not None and sha256_of(path) != recorded.sha256:
            return f"has {size} bytes as before, but other contents"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""


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
