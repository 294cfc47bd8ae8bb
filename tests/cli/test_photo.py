"""Photos as people have them: odd EXIF, odd number ranges, odd modes, several frames, damage."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from ocvtp_kernels.cli.photo import open_photo, quiet_pillow
from ocvtp_kernels.text import describe_error
from tests.cli.mutated import read_damaged

# A photo of four colours, so that every way of turning it can be told.
COLOURS = np.asarray([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]], dtype=np.uint8)
PHOTO = Image.fromarray(COLOURS.repeat(16, 0).repeat(24, 1))
RAMP = np.tile(np.linspace(0, 1, 256), (8, 1))


def make_exif(
    *entries: tuple[int, int, int, bytes], order: str = "<", behind: bytes = b""
) -> bytes:
    """EXIF of entries (tag, type, count, 4 bytes of value or offset) and what is behind them."""
    head = b"II*\0\x08\0\0\0" if order == "<" else b"MM\0*\0\0\0\x08"
    body = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        body += struct.pack(f"{order}HHI", tag, kind, count) + value.ljust(4, b"\0")
    return b"Exif\0\0" + head + body + bytes(4) + behind


def orientation(value: int, order: str = "<") -> tuple[int, int, int, bytes]:
    return 274, 3, 1, struct.pack(f"{order}H", value)


def far(
    tag: int, kind: int, count: int, offset: int, order: str = "<"
) -> tuple[int, int, int, bytes]:
    """An entry whose value stands at an offset."""
    return tag, kind, count, struct.pack(f"{order}I", offset)


TWO = 38  # where the value behind two entries stands
ODD_EXIF = {
    "negative resolution": make_exif(
        orientation(6), far(282, 10, 1, TWO), behind=struct.pack("<ii", -1, 7)
    ),
    "resolution over nothing": make_exif(
        orientation(6), far(282, 5, 1, TWO), behind=struct.pack("<II", 1, 0)
    ),
    "maker larger than all": make_exif(far(271, 2, 400, TWO), orientation(6)),
    "maker cut off": make_exif(far(271, 2, 20, TWO - 2), orientation(6), behind=b"Maker"),
    "maker beyond the end": make_exif(far(271, 2, 9, 9999), orientation(6)),
    "value far beyond the file": make_exif(far(270, 2, 9, 2**32 - 1), orientation(6)),
    "huge count": make_exif(far(271, 12, 2**31, TWO), orientation(6)),
    "unknown type": make_exif((270, 99, 1, b""), orientation(6)),
    "text where a number is due": make_exif(orientation(6), (282, 2, 4, b"abc")),
    "big endian, cut off": make_exif(
        far(271, 2, 20, TWO - 2, order=">"), orientation(6, order=">"), order=">"
    ),
    "pointer into itself": make_exif(orientation(6), far(0x8769, 4, 1, 8)),
}
LOST_EXIF = {
    "no TIFF": b"Exif\0\0" + b"not a header at all",
    "nothing": b"Exif\0\0",
    "header alone": b"Exif\0\0II*\0\x08\0\0\0",
    "entries beyond the end": b"Exif\0\0II*\0\xff\xff\0\0",
    "cut off in an entry": make_exif(orientation(6))[:20],
    "no such orientation": make_exif(orientation(9)),
    "an orientation of text": make_exif((274, 2, 4, b"six")),
}


def save(path: Path, exif: bytes = b"", format: str | None = None) -> Path:
    PHOTO.save(path, format, exif=exif, **({"quality": 100} if path.suffix == ".jpg" else {}))
    return path


def assert_same(photo: Image.Image, expected: Image.Image, within: int = 40) -> None:
    assert photo.mode == "RGB" and photo.size == expected.size
    away = np.asarray(photo, dtype=int) - np.asarray(expected.convert("RGB"), dtype=int)
    # Chroma of a JPEG runs into the neighbouring colour.
    assert np.median(np.abs(away)) <= 3 and np.abs(away)[4:12, 4:12].max() <= within


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ODD_EXIF)
def test_a_photo_whose_exif_is_odd_is_upright(tmp_path: Path, name: str) -> None:
    photo = open_photo(save(tmp_path / "photo.jpg", ODD_EXIF[name]))
    assert_same(photo, PHOTO.transpose(Image.Transpose.ROTATE_270))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", LOST_EXIF)
def test_a_photo_whose_exif_is_lost_lies_as_it_is(tmp_path: Path, name: str) -> None:
    assert_same(open_photo(save(tmp_path / "photo.jpg", LOST_EXIF[name])), PHOTO)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_whatever_stands_in_exif_the_pixels_are_read(tmp_path: Path) -> None:
    sound = save(tmp_path / "photo.jpg", ODD_EXIF["negative resolution"]).read_bytes()
    begin, end = sound.index(b"II*\0"), sound.index(b"\xff\xdb")
    random = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(sound)
        for at in random.integers(begin, end, random.integers(1, 9)):
            data[at] = random.choice([0, 1, 6, 255, random.integers(256)])
        (tmp_path / "photo.jpg").write_bytes(data)
        assert open_photo(tmp_path / "photo.jpg").size in ((48, 32), (32, 48))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_every_orientation_as_pillow_turns_it(tmp_path: Path, suffix: str) -> None:
    for value in range(1, 9):
        exif = Image.Exif()
        exif[274] = value
        path = save(tmp_path / f"photo.{suffix}", exif.tobytes())
        with Image.open(path) as file:
            expected = ImageOps.exif_transpose(file).convert("RGB")
        photo = open_photo(path)
        assert np.array_equal(np.asarray(photo), np.asarray(expected))
        # Processors may turn a photo once more, by what it says of itself.
        assert ImageOps.exif_transpose(photo).size == photo.size and not photo.getexif()


def test_an_orientation_in_xmp(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    PHOTO.save(tmp_path / "photo.jpg", xmp=xmp, quality=100)
    photo = open_photo(tmp_path / "photo.jpg")
    assert_same(photo, PHOTO.transpose(Image.Transpose.ROTATE_270))
    assert not photo.getexif()


def grey_of(path: Path) -> np.ndarray:
    """The grey levels of a photo, all three channels of which must agree."""
    levels = np.asarray(open_photo(path))
    assert (levels == levels[..., :1]).all()
    return levels[..., 0].astype(int)


def write(path: Path, values: np.ndarray) -> Path:
    Image.fromarray(values).save(path)
    return path


SPAN = np.arange(256)[None].repeat(8, 0)


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1), (0.25, 0.5), (0, 255), (0, 65535), (-1, 1), (-9e4, -3), (1e-30, 2e-30), (-3e38, 3e38)],
)
@pytest.mark.parametrize("format", ["TIFF", "SPIDER", "PPM"])
def test_floats_span_black_to_white(tmp_path: Path, format: str, low: float, high: float) -> None:
    values = (low + RAMP * (high - low)).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "photo", format)
    assert np.abs(grey_of(tmp_path / "photo") - SPAN).max() <= 1


@pytest.mark.parametrize(
    ("low", "high"), [(0, 255), (0, 65535), (-7, 1000), (-(2**31), 2**31 - 1), (2**30, 2**30 + 999)]
)
def test_whole_numbers_of_32_bits_span_black_to_white(tmp_path: Path, low: int, high: int) -> None:
    values = (low + RAMP * (high - low)).round().astype(np.int32)
    assert np.abs(grey_of(write(tmp_path / "photo.tif", values)) - SPAN).max() <= 1


def test_32_bits_without_a_sign_are_not_taken_for_negative(tmp_path: Path) -> None:
    values = (RAMP * (2**32 - 1)).round().astype(np.uint32)
    path = write(tmp_path / "photo.tif", values.view(np.int32))
    data = path.read_bytes()
    signed, unsigned = (struct.pack("<HHIH", 339, 3, 1, kind) for kind in (2, 1))
    assert data.count(signed) == 1
    path.write_bytes(data.replace(signed, unsigned))
    assert np.abs(grey_of(path) - SPAN).max() <= 1


@pytest.mark.filterwarnings("ignore:IM image format")
@pytest.mark.parametrize("name", ["photo.png", "photo.tif", "photo.pgm", "photo.jp2", "photo.im"])
def test_16_bits_keep_their_full_range(tmp_path: Path, name: str) -> None:
    values = np.asarray([[0, 255, 256, 4095, 32768, 65279, 65280, 65535]], dtype=np.uint16)
    path = write(tmp_path / name, values.repeat(4, 0))
    assert grey_of(path)[0].tolist() == [0, 0, 1, 15, 128, 254, 255, 255]


def test_16_bits_of_either_byte_order(tmp_path: Path) -> None:
    values = np.asarray([[0, 256, 32768, 65535]], dtype=np.uint16)
    big = Image.frombytes("I;16B", (4, 1), values.astype(">u2").tobytes())
    big.save(tmp_path / "big.tif")
    assert grey_of(tmp_path / "big.tif")[0].tolist() == [0, 1, 128, 255]


def test_what_is_no_number_does_not_decide_the_range(tmp_path: Path) -> None:
    values = RAMP.astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    grey = grey_of(write(tmp_path / "photo.tif", values))
    assert grey[0, :3].tolist() == [0, 255, 0]
    assert np.abs(grey[1:] - SPAN[1:]).max() <= 1


@pytest.mark.parametrize("value", [0.0, -5.5, 3e38, np.nan, -np.inf])
def test_a_photo_of_one_value_is_black(tmp_path: Path, value: float) -> None:
    values = np.full((9, 7), value, dtype=np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not grey_of(write(tmp_path / "photo.tif", values)).any()


@pytest.mark.filterwarnings("ignore:IM image format")
@pytest.mark.parametrize(
    ("mode", "name", "within"),
    [
        ("1", "a.png", 255),
        ("L", "a.png", 255),
        ("P", "a.gif", 9),
        ("RGBX", "a.tif", 0),
        ("RGBA", "a.tif", 0),
        ("RGBA", "a.webp", 60),
        ("CMYK", "a.tif", 3),
        ("CMYK", "a.jpg", 60),
        ("YCbCr", "a.tif", 3),
        ("YCbCr", "a.jpg", 60),
        ("PA", "a.tif", 60),
        ("LA", "a.png", 255),
    ],
)
def test_photos_of_every_mode(tmp_path: Path, mode: str, name: str, within: int) -> None:
    path = tmp_path / name
    PHOTO.convert(mode).save(path, **({"quality": 100} if path.suffix in (".jpg", ".webp") else {}))
    photo = open_photo(path)
    grey = np.asarray(photo.convert("L"), dtype=int)
    expected = np.asarray(PHOTO.convert(mode).convert("L"), dtype=int)
    assert np.median(np.abs(grey - expected)) <= 3
    if within < 255:
        assert_same(photo, PHOTO, within)


def test_lab_is_converted_by_its_colours(tmp_path: Path) -> None:
    Image.new("LAB", (8, 8), (255, 128, 128)).save(tmp_path / "white.tif")
    Image.new("LAB", (8, 8), (138, 209, 198)).save(tmp_path / "red.tif")
    for name, expected in (("white", (255, 255, 255)), ("red", (255, 0, 0))):
        seen = open_photo(tmp_path / f"{name}.tif").getpixel((4, 4))
        assert isinstance(seen, tuple)
        assert max(abs(a - b) for a, b in zip(seen, expected, strict=True)) <= 6


def clear_png(path: Path, mode: str, colour: Any, clear: Any) -> Path:
    Image.new(mode, (8, 8), colour).save(path, transparency=clear)
    return path


def test_transparency_is_white_however_it_is_said(tmp_path: Path) -> None:
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    path = tmp_path / "a.png"
    white, red = (255, 255, 255), (255, 0, 0)
    for clear, expected in ((1, white), (0, red), (b"\xff\x00", white), (b"\x00\xff", red)):
        palette.save(path, transparency=clear)
        assert open_photo(path).getpixel((0, 0)) == expected
    assert open_photo(clear_png(path, "L", 9, 9)).getpixel((0, 0)) == white
    assert open_photo(clear_png(path, "L", 9, 8)).getpixel((0, 0)) == (9, 9, 9)
    assert open_photo(clear_png(path, "RGB", red, red)).getpixel((0, 0)) == white
    assert open_photo(clear_png(path, "I;16", 300, 300)).getpixel((0, 0)) == white
    assert open_photo(clear_png(path, "I;16", 300, 301)).getpixel((0, 0)) == (1, 1, 1)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.tif", "a.webp", "a.mpo"])
def test_of_several_frames_the_first(tmp_path: Path, name: str) -> None:
    others = [Image.new("RGB", PHOTO.size, "white"), Image.new("RGB", PHOTO.size)]
    PHOTO.save(tmp_path / name, save_all=True, append_images=others, **{"quality": 100})
    assert_same(open_photo(tmp_path / name), PHOTO, 60)


DECODER_ERRORS = [
    struct.error("unpack requires a buffer of 4 bytes"),
    RuntimeError("Failed to decode frame 0:\n  Decoding of color planes failed"),
    NotImplementedError("Unimplemented pixel format 0"),
    KeyError("palette"),
    TypeError("a bytes-like object is required"),
    IndexError("index out of range"),
    OverflowError("Python int too large to convert to C int"),
    ZeroDivisionError("division by zero"),
    AttributeError("'NoneType' object has no attribute 'read'"),
    zlib.error("Error -3 while decompressing data"),
    EOFError(),
    AssertionError(),
    MemoryError(),
    RecursionError("maximum recursion depth exceeded"),
    SyntaxError("broken PNG file"),
    OSError("image file is truncated"),
    Image.DecompressionBombError("Image size exceeds limit"),
]


@pytest.mark.parametrize("error", DECODER_ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("step", ["load", "convert", "transpose"])
def test_whatever_a_decoder_raises_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: Exception
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    path = save(tmp_path / "photo.png", make_exif(orientation(6)))
    owner = PngImagePlugin.PngImageFile if step == "load" else Image.Image
    monkeypatch.setattr(owner, step, fail)
    with pytest.raises(ValueError, match="not a whole image: ") as raised:
        open_photo(path)
    assert str(raised.value) == f"not a whole image: {describe_error(error)}"
    assert len(str(raised.value).splitlines()) == 1
    assert (str(error) or type(error).__name__).split()[-1] in str(raised.value)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_what_ends_a_run_is_no_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise stop

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(stop):
        open_photo(save(tmp_path / "photo.png"))


def test_a_reason_is_never_empty_and_says_its_type() -> None:
    assert describe_error(ValueError("expected 3,\n  got 4 ")) == "expected 3, got 4"
    assert describe_error(ValueError()) == "ValueError"
    assert describe_error(OSError("\n")) == "OSError"
    assert describe_error(TypeError("no\r\nwonder")) == "TypeError: no wonder"
    assert describe_error(MemoryError()) == "MemoryError"
    describe_error(ValueError("a\udcffb")).encode()


def test_a_whole_command_shows_none_of_pillows_warnings(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = save(tmp_path / "photo.jpg", ODD_EXIF["maker cut off"])
    open_photo(path)
    assert any(one.category is UserWarning for one in recwarn)
    recwarn.clear()
    with quiet_pillow():
        open_photo(path)
        warnings.warn("of ours", stacklevel=1)
    assert [str(one.message) for one in recwarn] == ["of ours"]


@pytest.mark.parametrize(
    "count", [200, pytest.param(4000, marks=pytest.mark.slow)], ids=lambda count: str(count)
)
def test_damaged_photos_are_read_or_skipped(tmp_path: Path, count: int) -> None:
    outcome = read_damaged(count, 1, tmp_path)
    assert not outcome.faults, "\n".join(outcome.faults[:5])
    assert outcome.read.total() + outcome.skipped.total() == count
    assert len(outcome.read | outcome.skipped) >= 17 and outcome.longest[0] < 10
    # Both happen, or there is nothing that it shows.
    assert outcome.read.total() > count / 10 and outcome.skipped.total() > count / 10
