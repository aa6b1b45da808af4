"""Every kind of image file to pixels, against loops and plain Pillow; and files that somebody broke, or made to break something."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps, features

from rightreasons.data.decode import MAX_PIXELS, Header, decode_image, decode_mask, read_header
from rightreasons.errors import UnreadableImage
from tests.support.helpers import environment


def picture(height: int = 24, width: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth colours, so that JPEG stays near, without any symmetry."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    planes = [rows * random.uniform(2, 5) + columns * random.uniform(1, 4) + random.uniform(0, 50) for _ in range(channels)]
    pixels = np.clip(np.stack(planes, -1) * 255 / (5 * height + 4 * width + 50), 0, 255).astype(np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def write(path, image: Image.Image | np.ndarray, **options):
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rgb(path, **options) -> np.ndarray:
    return decode_image(path, mode="rgb", **options).permute(1, 2, 0).numpy()


def grey(path, **options) -> np.ndarray:
    pixels = decode_image(path, mode="grey", **options)
    assert pixels.shape[0] == 1
    return pixels[0].numpy()


def test_eight_bits(tmp_path):
    pixels, one = picture(), picture(channels=1)
    colour, flat = write(tmp_path / "a.png", pixels), write(tmp_path / "b.bmp", one)
    assert read_header(colour) == Header(32, 24, "rgb") and read_header(flat) == Header(32, 24, "grey")
    assert (rgb(colour) == pixels).all() and (grey(flat) == one).all() and (rgb(flat) == one[..., None]).all()
    # ITU-R 601: what grey is made of, rounded by Pillow.
    weighed = pixels @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey(colour) - weighed).max() <= 1


@pytest.mark.parametrize(
    ("name", "kind", "brightest", "top"),
    [
        ("a.png", np.uint16, 65535, 65535), ("a.tif", np.uint16, 40000, 65535), ("a.tif", ">u2", 65535, 65535), ("a.png", np.uint16, 4095, 4095),
        ("a.tif", np.uint16, 1100, 4095), ("a.tif", np.uint16, 1024, 1023),
        ("a.png", np.uint16, 900, 1023), ("a.png", np.uint16, 255, 255), ("a.tif", np.int32, 70, 255),
        ("a.tif", np.float32, 1.0, 1.0), ("a.tif", np.float32, 0.4, 1.0), ("a.tif", np.float32, 200.5, 255),
    ],
)  # fmt: skip
def test_more_than_eight_bits(tmp_path, name, kind, brightest, top):
    """White is the brightest of the fewest bits that hold the data: 12 bits in a file of 16 are not shown nearly black."""
    values = np.linspace(0, brightest, 24 * 32).reshape(24, 32).astype(kind)
    path = tmp_path / name
    if kind == ">u2":
        Image.frombytes("I;16B", (32, 24), values.tobytes()).save(path)
        assert path.read_bytes()[:2] == b"MM"
    else:
        write(path, values)
    expected = [[round(min(255.0, float(value) * 255 / top)) for value in row] for row in values]
    found = grey(path)
    assert read_header(path) == Header(32, 24, "grey")
    assert np.abs(found.astype(int) - expected).max() <= 1 and found.max() == round(255 * float(values.max()) / top)
    assert (rgb(path) == found[..., None]).all()


def test_window_comes_before_bits_are_dropped(tmp_path):
    """1000 and 1010 are the same in 8 of 16 bits, and far apart in a window of 20."""
    path = write(tmp_path / "a.png", np.full((4, 4), 1000, np.uint16) + np.eye(4, dtype=np.uint16) * 10)
    assert 1000 >> 8 == 1010 >> 8
    assert (grey(path, window=(995.0, 1015.0)) == np.where(np.eye(4, dtype=bool), round(15 / 20 * 255), round(5 / 20 * 255))).all()
    assert (grey(path, window=(1010.0, 1020.0)) == 0).all() and (grey(path, window=(0.0, 1000.0)) == 255).all()


@pytest.mark.parametrize(("values", "words"), [([-5.0, 10.0], "window = \\[-5, 10\\]"), ([0.0, 1e9], "window"), ([0.0, np.nan], "not numbers"),
                                              ([0.0, np.inf], "not numbers")])  # fmt: skip
def test_numbers_that_say_not_what_is_black(tmp_path, values, words):
    path = write(tmp_path / "a.tif", np.resize(np.array(values, np.float32), (4, 4)))
    with pytest.raises(UnreadableImage, match=words):
        decode_image(path, mode="grey")
    if words == "not numbers":
        with pytest.raises(UnreadableImage, match=words):
            decode_image(path, mode="grey", window=(0.0, 1.0))


def test_one_bit(tmp_path):
    bits = picture(channels=1) > 128
    path = write(tmp_path / "a.png", Image.fromarray(bits))
    assert (grey(path) == np.where(bits, 255, 0)).all() and read_header(path).mode == "grey"


def test_palette(tmp_path):
    indices = (picture(channels=1) // 64).astype(np.uint8)
    colours = [(250, 0, 10), (0, 200, 0), (7, 8, 255), (90, 91, 92)]
    image = Image.fromarray(indices, "P")
    image.putpalette([value for colour in colours for value in colour])
    assert (rgb(write(tmp_path / "a.png", image)) == np.array(colours)[indices]).all()
    assert (rgb(write(tmp_path / "a.gif", image)) == np.array(colours)[indices]).all()
    path = write(tmp_path / "b.png", image, transparency=bytes([255, 0, 128, 255]))
    shown = rgb(path).astype(int)
    alpha = np.array([255, 0, 128, 255])[indices][..., None] / 255
    expected = np.array(colours)[indices] * alpha + 255 * (1 - alpha)
    assert np.abs(shown - expected).max() <= 1 and (shown[indices == 1] == 255).all()


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    channels = len(mode) - 1
    colours = picture(channels=channels)
    for alpha in (np.full((24, 32), 255, np.uint8), picture(channels=1, seed=4)):
        pixels = np.dstack([colours, alpha])
        path = write(tmp_path / "a.png", Image.fromarray(pixels, mode))
        share = alpha[..., None] / 255
        expected = np.atleast_3d(colours) * share + 255 * (1 - share)
        assert np.abs(rgb(path).astype(int) - expected).max() <= 1
        if alpha.min() == 255:
            assert (rgb(path) == np.array(Image.open(path).convert("RGB"))).all(), "opaque: as it is"
    assert read_header(path).mode == ("grey" if mode == "LA" else "rgb")
    assert (rgb(path)[..., 0] == grey(path)).all() or mode == "RGBA"


def test_transparent_colour_of_a_png(tmp_path):
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[1] = (10, 20, 30)
    path = write(tmp_path / "a.png", pixels, transparency=(0, 0, 0))
    assert (rgb(path)[1] == (10, 20, 30)).all() and (rgb(path)[[0, 2, 3]] == 255).all()


def test_cmyk(tmp_path):
    """Ink on white: Adobe's files hold it inverted, and Pillow writes Adobe's."""
    ink = np.zeros((16, 16, 4), np.uint8)
    ink[:8, :8, 0], ink[:8, 8:, 1], ink[8:, :8, 2], ink[8:, 8:, 3] = 255, 255, 255, 255
    path = write(tmp_path / "a.jpg", Image.fromarray(ink, "CMYK"), quality=100)
    assert b"Adobe" in path.read_bytes()[:200]
    tiff = write(tmp_path / "a.tif", Image.fromarray(ink, "CMYK"))
    for shown, tolerance in ((rgb(path), 6), (rgb(tiff), 1)):
        for place, colour in {(2, 2): (0, 255, 255), (2, 13): (255, 0, 255), (13, 2): (255, 255, 0), (13, 13): (0, 0, 0)}.items():
            assert np.abs(shown[place].astype(int) - colour).max() <= tolerance, place
    assert read_header(path) == Header(16, 16, "rgb")


def test_other_colour_spaces(tmp_path):
    # Neutral in CIELAB is grey of the lightness: L 100 is white, 0 black, and 53.6 the middle of sRGB.
    lab = np.zeros((3, 4, 3), np.uint8)
    lab[:, :, 0] = np.array([0, 137, 255])[:, None]
    shown = rgb(write(tmp_path / "a.tif", Image.fromarray(lab, "LAB")))
    assert np.abs(shown.astype(int) - np.array([0, 128, 255])[:, None, None]).max() <= 3
    # ITU-T T.871: Y 76, Cb 85, Cr 255 is red.
    ycc = np.full((8, 8, 3), (76, 85, 255), np.uint8)
    shown = rgb(write(tmp_path / "b.tif", Image.fromarray(ycc, "YCbCr")))
    assert np.abs(shown.astype(int) - (254, 0, 0)).max() <= 2


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG by hand (ISO 15948): signature, IHDR, IDAT, IEND."""
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)


def test_sixteen_bits_in_colour(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (4, 5, 3))
    path = tmp_path / "a.png"
    path.write_bytes(png(5, 4, 16, 2, b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)))
    assert np.abs(rgb(path).astype(int) - values / 257).max() <= 1


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, kind, orientation):
    """As Pillow turns a full decoding, and the corner that EXIF calls the top left is there."""
    pixels = np.zeros((160, 240, 3), np.uint8)
    pixels[:80, :120] = (250, 30, 30)  # the first stored rows and columns
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "webp" else {}
    path = write(tmp_path / f"a.{kind}", pixels, exif=exif, **options)
    with Image.open(path) as image:
        expected = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    assert (rgb(path) == expected).all()
    height, width = expected.shape[:2]
    assert (height, width) == ((160, 240) if orientation < 5 else (240, 160)) and read_header(path) == Header(width, height, "rgb")
    # EXIF 2.3: where the first stored row and column are shown.
    top = orientation in (1, 2, 5, 6)
    left = orientation in (1, 4, 5, 8)
    red = rgb(path)[height // 4 if top else -height // 4, width // 4 if left else -width // 4]
    assert red[0] > 200 and red[1] < 80
    size = (30, 20)
    resized = np.array(Image.fromarray(expected).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(rgb(path, size=size).astype(int) - resized).mean() < 2, "decoded at the size needed"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["L", "I;16", "P", "CMYK"])
def test_an_uncompressed_tiff_is_turned_too(tmp_path, kind, orientation):
    """Pillow 13.0.0 maps such files into memory, and takes their upright size for that of the stored pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)
    stored = Image.fromarray(pixels) if kind in ("L", "P") else Image.fromarray(pixels.astype(np.uint16))
    if kind == "P":
        stored.putpalette(bytes(value for grey in range(256) for value in (grey, grey, grey)))
    if kind == "CMYK":
        stored = Image.merge("CMYK", [Image.new("L", (60, 40))] * 3 + [Image.fromarray(255 - pixels)])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored.save(tmp_path / "a.tif", exif=exif)
    upright = Image.fromarray(pixels)
    upright.getexif()[ExifTags.Base.Orientation] = orientation
    expected = np.array(ImageOps.exif_transpose(upright))
    assert (decode_image(tmp_path / "a.tif", mode="grey", window=(0.0, 255.0))[0].numpy() == expected).all()
    header = read_header(tmp_path / "a.tif")
    assert (header.height, header.width) == expected.shape
    if kind == "L":
        Image.fromarray(np.where(pixels < 128, 0, 255).astype(np.uint8)).save(tmp_path / "mask.tif", exif=exif)
        assert (decode_mask(tmp_path / "mask.tif").numpy() == (expected >= 128)).all()


def test_corrupt_exif_is_passed_over(tmp_path):
    pixels = picture()
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(Image.fromarray(pixels), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"))
    assert rgb(path).shape == pixels.shape and read_header(path) == Header(32, 24, "rgb")


@pytest.mark.parametrize(("kind", "several"), [("gif", True), ("tif", True), ("webp", True)])
def test_the_first_of_several_frames(tmp_path, kind, several):
    frames = [Image.fromarray(np.full((10, 12, 3), value, np.uint8)) for value in (40, 200)]
    path = write(tmp_path / f"a.{kind}", frames[0], save_all=several, append_images=frames[1:])
    with Image.open(path) as image:
        assert image.n_frames == 2
    assert np.abs(rgb(path).astype(int) - 40).max() <= 4


@pytest.mark.parametrize("size", [(56, 56), (20, 90), (7, 3), (700, 500)])
@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG"])
def test_size(tmp_path, kind, size):
    """JPEG at the size needed is what a full decoding is, to the eye; sizes larger than the file are made too."""
    pixels = picture(400, 300)
    texture = np.random.default_rng(0).integers(0, 60, (100, 75, 3)).repeat(4, 0).repeat(4, 1)
    image = Image.fromarray(np.clip(pixels.astype(int) + texture, 0, 255).astype(np.uint8))
    path = tmp_path / "a.jpg"
    path.write_bytes(encode(image, kind, **({"save_all": True, "append_images": [image]} if kind == "MPO" else {})))
    with Image.open(path) as full:
        expected = np.array(full.resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
    found = rgb(path, size=size)
    assert found.shape == (*size, 3)
    difference = np.abs(found - expected)
    assert difference.max() == 0 if kind == "PNG" else difference.mean() < 2 and np.percentile(difference, 99) < 8
    assert size != (56, 56) or kind == "PNG" or difference.max() > 0, "it was decoded at another size"


BROKEN = {
    "truncated.jpg": lambda: encode(Image.fromarray(picture(200, 200)), "JPEG")[:1500],
    "truncated.png": lambda: encode(Image.fromarray(picture(200, 200)), "PNG")[:600],
    "text.png": lambda: b"not a picture\n" * 20,
    "empty.jpg": lambda: b"",
    "strip.png": lambda: png(50_000, 10, 8, 0, (b"\0" + bytes(50_000)) * 10),
}
WORDS = {"truncated.jpg": "truncated", "truncated.png": "truncated", "text.png": "not an image that can be read", "empty.jpg": "not an image",
         "strip.png": "50000x10 pixels: one side is more than 100 times"}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("size", [None, (16, 16)])
def test_broken_files_say_what_is_wrong(tmp_path, name, size):
    path = tmp_path / name
    path.write_bytes(BROKEN[name]())
    for source in (path, io.BytesIO(path.read_bytes())):
        with pytest.raises(UnreadableImage, match=WORDS[name]) as raised:
            decode_image(source, mode="rgb", size=size)
        assert str(tmp_path) not in str(raised.value) and "\n" not in str(raised.value)
    if "truncated" not in name:
        with pytest.raises(UnreadableImage, match=WORDS[name]):
            read_header(path)


def test_a_file_that_is_not_there(tmp_path):
    for read in (read_header, lambda path: decode_image(path, mode="grey"), decode_mask):
        with pytest.raises(UnreadableImage, match="^No such file or directory$"):
            read(tmp_path / "no.png")
        with pytest.raises(UnreadableImage, match="^Is a directory$"):
            read(tmp_path)


def test_a_hundred_megapixels_are_read(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(10_000, 10_000, 8, 0, (b"\0" + b"\x4d" * 10_000) * 10_000))
    assert path.stat().st_size < 200_000 and read_header(path) == Header(10_000, 10_000, "grey")
    assert (decode_image(path, mode="grey", size=(32, 32)) == 0x4D).all()


def bomb(kind: str) -> bytes:
    side = 60_000
    if kind == "png":
        return png(side, side, 8, 2, b"\0" * 1000)
    if kind == "large.png":
        # Twice the bound or less: Pillow only warns of it.
        return png(2**14, 2**13 + 1, 8, 0, b"\0" * 1000)
    if kind == "gif":
        return b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(6) + b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\0;"
    if kind == "frame.gif":
        # The frame is larger than the screen that the header speaks of.
        return b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0x80, 0, 0) + bytes(6) + b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\0;"
    if kind == "bmp":
        return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 1000, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    if kind == "ppm":
        return b"P6 60000 60000 255\n" + bytes(1000)
    entries = [(256, side), (257, side), (258, 8), (259, 1), (262, 1), (273, 200), (277, 1), (278, side), (279, 1000)]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + bytes(1000)


@pytest.mark.parametrize("kind", ["png", "large.png", "gif", "frame.gif", "bmp", "ppm", "tif"])
def test_bombs_are_refused_before_they_are_unpacked(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    path.write_bytes(bomb(kind))
    tracemalloc.start()
    started = time.process_time()
    for read in (read_header, lambda path: decode_image(path, mode="rgb", size=(8, 8)), decode_mask):
        with pytest.raises(UnreadableImage, match="megapixels"):
            read(path)
    assert time.process_time() - started < 2 and tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_the_bound_itself(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png(2**14, 2**13, 8, 0, b""))
    header = read_header(path)
    assert header.width * header.height == MAX_PIXELS


def samples() -> dict[str, bytes]:
    colour, one = Image.fromarray(picture(20, 20)), Image.fromarray(picture(20, 20, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = {
        "jpg": encode(colour, "JPEG", exif=exif), "png": encode(colour, "PNG", exif=exif), "gif": encode(one, "GIF"), "bmp": encode(colour, "BMP"),
        "tif": encode(colour, "TIFF"), "lzw.tif": encode(one, "TIFF", compression="tiff_lzw"), "cmyk.jpg": encode(colour.convert("CMYK"), "JPEG"),
        "pgm": encode(one, "PPM"), "deep.png": encode(Image.fromarray(picture(20, 20, 1).astype(np.uint16) * 200), "PNG"),
        "palette.png": encode(colour.convert("P"), "PNG", transparency=3),
        "float.tif": encode(Image.fromarray(picture(20, 20, 1) / np.float32(3)), "TIFF"),
    }  # fmt: skip
    if features.check("webp"):
        found["webp"] = encode(colour, "WEBP", exif=exif)
    return found


@pytest.mark.parametrize("name", samples())
def test_hostile_bytes(tmp_path, name, capfd):
    """Pixels or UnreadableImage, and not a word to the user: with warnings as they are outside of tests, and as errors."""
    random = np.random.default_rng(sum(map(ord, name)))
    path, good = tmp_path / f"a.{name}", samples()[name]
    path.write_bytes(good)
    assert rgb(path).shape == (20, 20, 3)
    outcomes = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(150):
            broken = bytearray(good)
            # Headers are where the harm is done.
            for _ in range(random.integers(1, 6)):
                end = min(len(broken), 400) if random.random() < 0.7 else len(broken)
                broken[random.integers(end)] = random.integers(256)
            path.write_bytes(broken[: random.integers(len(broken))] if random.random() < 0.2 else broken)
            for read in (read_header, decode_mask, lambda path: decode_image(path, mode="rgb", size=(8, 8))):
                try:
                    read(path)
                    outcomes.append(True)
                except UnreadableImage:
                    outcomes.append(False)
    assert not warned
    # Of what is compressed libtiff itself writes to the process's standard error, and Pillow offers no way to hush it.
    assert name == "lzw.tif" or capfd.readouterr() == ("", "")
    assert any(outcomes) and not all(outcomes)


def test_nothing_is_warned_of_in_a_plain_process(tmp_path):
    """Pillow warns of this EXIF when it is read by itself."""
    data = encode(Image.fromarray(picture()), "TIFF")
    count = struct.unpack_from("<H", data, struct.unpack_from("<I", data, 4)[0])[0]
    path = tmp_path / "a.tif"
    # The last entry of the directory, a private tag whose value would lie behind the end of the file.
    entry = struct.unpack_from("<I", data, 4)[0] + 2 + 12 * (count - 1)
    path.write_bytes(data[:entry] + struct.pack("<HHII", 65000, 2, 100, len(data) + 50) + data[entry + 12 :])
    with pytest.warns(UserWarning), Image.open(path) as image:
        dict(image.tag_v2)
    code = f"from pathlib import Path; from rightreasons.data.decode import *; p = Path({str(path)!r}); read_header(p); decode_image(p, mode='rgb')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_host_program_keeps_its_own_settings(tmp_path):
    """Importing and decoding, also in threads, change neither the filters of warnings nor Pillow's bound."""
    good, bad = write(tmp_path / "a.png", Image.fromarray(picture())), tmp_path / "b.png"
    bad.write_bytes(b"no image")
    code = f"""
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from PIL import Image
bound, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
from rightreasons.data.decode import decode_image, read_header
from rightreasons.errors import UnreadableImage
try:
    read_header(Path({str(bad)!r}))
except UnreadableImage:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: decode_image(Path({str(good)!r}), mode="rgb"), range(200)))
ours = [entry for entry in warnings.filters if entry not in filters and entry[3] is not None and "PIL" in entry[3].pattern]
print(Image.MAX_IMAGE_PIXELS == bound, ours)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=60)
    assert (done.stdout, done.stderr) == ("True []\n", "")


def test_masks(tmp_path):
    wanted = np.zeros((20, 30), bool)
    wanted[5:12, 8:20] = True
    colours = Image.fromarray(wanted.astype(np.uint8), "P")
    colours.putpalette([0, 0, 0, 128, 0, 0])
    files = {
        "full.png": Image.fromarray(np.where(wanted, 255, 0).astype(np.uint8)), "ones.png": Image.fromarray(wanted.astype(np.uint8)),
        "bits.png": Image.fromarray(wanted), "palette.png": colours, "deep.png": Image.fromarray(np.where(wanted, 65535, 0).astype(np.uint16)),
        "colour.png": Image.fromarray(np.where(wanted[..., None], 255, 0).astype(np.uint8).repeat(3, 2)),
    }  # fmt: skip
    for name, image in files.items():
        assert (decode_mask(write(tmp_path / name, image)).numpy() == wanted).all(), name
    noisy = write(tmp_path / "noise.jpg", files["full.png"], quality=30)
    with Image.open(noisy) as image:
        assert len(set(np.array(image).ravel())) > 2, "JPEG leaves other greys"
    assert (decode_mask(noisy).numpy() == wanted).mean() > 0.99
    assert not decode_mask(write(tmp_path / "blank.png", np.zeros((20, 30), np.uint8))).any()
    larger = decode_mask(tmp_path / "full.png", size=(40, 60))
    assert (larger.numpy() == wanted.repeat(2, 0).repeat(2, 1)).all()
    smaller = decode_mask(write(tmp_path / "large.png", np.where(wanted.repeat(3, 0).repeat(3, 1), 255, 0).astype(np.uint8)), size=(20, 30))
    assert (smaller.numpy() == wanted).all() and smaller.dtype == torch.bool


def test_a_mask_is_turned_as_its_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    wanted = np.zeros((20, 30), np.uint8)
    wanted[:5, :5] = 255
    assert (decode_mask(write(tmp_path / "a.png", wanted, exif=exif)).numpy() == (np.rot90(wanted, -1) > 0)).all()


def test_large_images_take_turns(tmp_path, monkeypatch):
    """While one is decoded, a second thread waits for it, and a small one does not."""
    import threading

    from rightreasons.data import decode

    monkeypatch.setattr(decode, "_LARGE", 500)
    large, small = write(tmp_path / "a.png", picture()), write(tmp_path / "b.png", picture(8, 8))
    done = threading.Event()

    def read() -> None:
        decode_image(large, mode="rgb")
        done.set()

    with decode._one_large:
        thread = threading.Thread(target=read)
        thread.start()
        decode_image(small, mode="rgb")
        assert not done.wait(0.2)
    assert done.wait(20)
    thread.join()
