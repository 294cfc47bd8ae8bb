"""Features on disk: the reference tokens of a folder of images, in shards with a manifest.

A folder holds ``features-00000.safetensors`` and so on, each one float16 tensor ``tokens``
``[n, N, C]``, and ``manifest.json``, which names the encoder, the shards and the images in them,
each with its SHA-256. `ocvtp_kernels.training.feature_writer` makes such a folder.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm

MANIFEST = "manifest.json"
FORMAT, VERSION = "ocvtp-features", 2
# Version 1 did not record the images' SHA-256.
VERSIONS = (1, VERSION)
# Of what reads and hashes files, which holds no lock meanwhile.
THREADS = min(16, os.cpu_count() or 1)
TENSOR, DTYPE = "tokens", "float16"
_SAFETENSORS_DTYPE = "F16"
_TYPES: dict[str, tuple[type, ...]] = {
    "package_version": (str,),
    "encoder": (str,),
    "model": (str, type(None)),
    "reference_layer": (int, type(None)),
    "weights_sha256": (str, type(None)),
    "num_tokens": (int,),
    "width": (int,),
    "dtype": (str,),
    "grid": (list,),
    "shards": (list,),
    "skipped": (list,),
}
_SHARD_TYPES: dict[str, tuple[type, ...]] = {
    "file": (str,),
    "count": (int,),
    "sha256": (str,),
    "computed_in": (str,),
    "images": (list,),
    "bytes": (list,),
    "image_sha256": (list,),
}
# Of a shard's lists, an entry an image.
_IMAGE_TYPES: dict[str, tuple[type, ...]] = {
    "images": (str,),
    "bytes": (int,),
    "image_sha256": (str, type(None)),
}


class ImageFile(NamedTuple):
    """What a manifest records of an image's file."""

    size: int  # bytes
    sha256: str | None  # None where a manifest of version 1 began the folder


class FeatureFolder:
    """The reference tokens of a folder of images, read from disk as they are asked for.

    Shards are mapped into memory when first read, and the object travels to `DataLoader` workers.

    Args:
        path: folder that ``ocvtp features`` wrote.

    Attributes:
        path: the folder.
        manifest: what ``manifest.json`` holds; of version 1, with null for each image's SHA-256.
        num_tokens: N, width: C, grid: rows and columns, with rows · columns = N.
        paths: of the images below their folder, with slashes, in the order of the indices.

    Raises:
        FileNotFoundError: there is no manifest.
        ValueError: the manifest is not one, or of another version of the format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path / MANIFEST)
        self.num_tokens: int = self.manifest["num_tokens"]
        self.width: int = self.manifest["width"]
        self.grid: tuple[int, int] = (self.manifest["grid"][0], self.manifest["grid"][1])
        self._shards: list[dict[str, Any]] = self.manifest["shards"]
        self.paths: list[str] = [name for shard in self._shards for name in shard["images"]]
        self._ends = list(accumulate(shard["count"] for shard in self._shards))
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """The reference tokens of one image, float16 ``[N, C]`` on the CPU, a copy.

        Raises:
            IndexError: there is no such image.
            FileNotFoundError: its shard is missing.
            ValueError: its shard is not what the manifest says.
        """
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index: expected {-len(self)} to {len(self) - 1}, got {index}")
        index %= len(self)
        number = bisect_right(self._ends, index)
        start = self._ends[number] - self._shards[number]["count"]
        tokens: Tensor = self._slice(number)[index - start]
        # The slice shares the mapped memory, which a later read would see changed.
        return tokens.clone()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def split(self, val_share: float = 0.05, seed: int = 0) -> tuple[list[int], list[int]]:
        """Indices to train on, and to validate on, each ascending.

        A hash of an image's path and the seed decides, so images added later move none. Where the
        first two images would share a part, the second goes to the other one, so both parts are
        non-empty from two images on.

        Args:
            val_share: expected share of validation images, in (0, 1).
            seed: of the hash.

        Raises:
            ValueError: ``val_share`` is out of range.
        """
        if not 0 < val_share < 1:
            raise ValueError(f"val_share: expected more than 0 and less than 1, got {val_share}")
        held_out = [_uniform(path, seed) < val_share for path in self.paths]
        if len(held_out) > 1:
            held_out[1] = not held_out[0]
        train = [index for index, held in enumerate(held_out) if not held]
        return train, [index for index, held in enumerate(held_out) if held]

    def image_files(self) -> dict[str, ImageFile]:
        """What is recorded of the images' files, by path."""
        return {
            name: ImageFile(size, digest)
            for shard in self._shards
            for name, size, digest in zip(
                shard["images"], shard["bytes"], shard["image_sha256"], strict=True
            )
        }

    def verify(self) -> None:
        """Reads every shard whole and compares its SHA-256 with the manifest's.

        Raises:
            FileNotFoundError: one is missing.
            ValueError: one is not what the manifest says.
        """
        for error in self.damaged_shards():
            raise error

    def damaged_shards(self) -> Iterator[OSError | ValueError]:
        """Verifies shard after shard, and yields the errors, each of which names its shard.

        Every shard is read whole, several at a time. Where that takes seconds, a bar on stderr
        shows how far it is.
        """
        count = len(self._shards)
        pool = ThreadPoolExecutor(THREADS)
        try:
            errors = pool.map(self._damage, range(count))
            bar = tqdm(errors, "verifying", count, leave=False, unit="shard", delay=2)
            yield from (error for error in bar if error is not None)
        finally:
            pool.shutdown(cancel_futures=True)

    def _damage(self, number: int) -> OSError | ValueError | None:
        shard = self._shards[number]
        path = self.path / shard["file"]
        try:
            self._slice(number)
            digest = sha256_of(path)
        except FileNotFoundError as error:
            return error
        except (OSError, ValueError) as error:
            return error if str(path) in str(error) else ValueError(f"{path}: {error}")
        if digest != shard["sha256"]:
            return ValueError(f"{path}: expected SHA-256 {shard['sha256']}, got {digest}")
        return None

    def _slice(self, number: int) -> Any:
        """A shard's tokens, read when they are indexed."""
        if number not in self._open:
            self._open[number] = self._map(self._shards[number])
        return self._open[number]

    def _map(self, shard: dict[str, Any]) -> Any:
        path = self.path / shard["file"]
        if not path.is_file():
            raise FileNotFoundError(f"{path}: a shard named in {MANIFEST} is missing")
        try:
            file = safe_open(path, framework="pt")
            names = list(file.keys())
            if names != [TENSOR]:
                raise ValueError(f"{path}: expected one tensor {TENSOR!r}, got {names}")
            tokens = file.get_slice(TENSOR)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: expected a safetensors file, got {error}") from error
        expected = (_SAFETENSORS_DTYPE, [shard["count"], self.num_tokens, self.width])
        actual = (str(tokens.get_dtype()), list(tokens.get_shape()))
        if actual != expected:
            raise ValueError(
                f"{path}: expected {expected[0]} {expected[1]} by {MANIFEST}, "
                f"got {actual[0]} {actual[1]}"
            )
        return tokens


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads and checks a manifest; of version 1, each image's SHA-256 is None.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not one, or of another version of the format.
    """
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"{path}: no such file; `ocvtp features` writes it") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path}: expected a manifest of format {FORMAT!r}")
    version = manifest.get("version")
    if type(version) is not int or version not in VERSIONS:
        raise ValueError(
            f"{path}: expected version {' or '.join(map(str, VERSIONS))}, got {version!r}"
        )
    _require(manifest, _TYPES, str(path))
    rows_columns = manifest["grid"]
    if (
        len(rows_columns) != 2
        or any(type(side) is not int or side < 1 for side in rows_columns)
        or rows_columns[0] * rows_columns[1] != manifest["num_tokens"]
    ):
        raise ValueError(
            f"{path}: grid: expected rows and columns of {manifest['num_tokens']} tokens, "
            f"got {rows_columns}"
        )
    if manifest["dtype"] != DTYPE:
        raise ValueError(f"{path}: dtype: expected {DTYPE}, got {manifest['dtype']}")
    for number, shard in enumerate(manifest["shards"]):
        where = f"{path}: shard {number}"
        if not isinstance(shard, dict):
            raise ValueError(f"{where}: expected an object, got {shard!r}")
        if version == 1 and isinstance(shard.get("images"), list):
            shard["image_sha256"] = [None] * len(shard["images"])
        _require(shard, _SHARD_TYPES, where)
        for key, types in _IMAGE_TYPES.items():
            if not len(shard[key]) == shard["count"] > 0:
                raise ValueError(f"{where}: expected as many {key} as its count, {shard['count']}")
            for value in shard[key]:
                _require_type(f"{where}: {key}", value, types)
        if shard["file"] != shard_name(number):
            raise ValueError(f"{where}: expected {shard_name(number)}, got {shard['file']!r}")
    for number, one in enumerate(manifest["skipped"]):
        where = f"{path}: skipped {number}"
        if not isinstance(one, dict):
            raise ValueError(f"{where}: expected an object, got {one!r}")
        _require(one, {"path": (str,), "reason": (str,)}, where)
    return manifest


def shard_name(number: int) -> str:
    """The file of a shard."""
    return f"features-{number:05d}.safetensors"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def float16_of(tokens: Tensor) -> Tensor:
    """Tokens as they are stored: float16 on the CPU, to nearest, inf beyond its range."""
    return tokens.to(device="cpu", dtype=torch.float16)


def _require(values: dict[str, Any], types: dict[str, tuple[type, ...]], where: str) -> None:
    for key, allowed in types.items():
        if key not in values:
            raise ValueError(f"{where}: {key} is missing")
        _require_type(f"{where}: {key}", values[key], allowed)


def _require_type(where: str, value: object, allowed: tuple[type, ...]) -> None:
    if not isinstance(value, allowed) or isinstance(value, bool):
        expected = " or ".join("null" if t is type(None) else t.__name__ for t in allowed)
        raise ValueError(f"{where}: expected {expected}, got {value!r}")


def _uniform(path: str, seed: int) -> float:
    """A number in [0, 1), a hash of path and seed."""
    digest = hashlib.sha256(f"{seed}/{path}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
