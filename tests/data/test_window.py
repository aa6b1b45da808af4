"""Black and white of images of more than 8 bits: one pair of numbers for a whole folder, whatever single files and pixels hold."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rightreasons.common.progress import Silent
from rightreasons.config import DataConfig
from rightreasons.data import open_data
from rightreasons.data.decode import decode_image, read_header, sample_values
from rightreasons.data.survey import survey_task
from rightreasons.data.window import guess_window, thin_out
from rightreasons.errors import DataError, UnreadableImage

RAMP = np.linspace(0, 4095, 256).round().astype(np.uint16).reshape(16, 16)


def write_classes(root: Path, make, *, count: int = 8, suffix: str = "png") -> None:
    """``make(label, number)`` gives the pixels of an image."""
    for label in ("a", "b"):
        (root / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.fromarray(make(label, number)).save(root / label / f"{number}.{suffix}")


def opened(root: Path, **more):
    return open_data(DataConfig(path=".", **more), root=root, seed=0)


def median_by_class(task) -> dict[str, float]:
    return {task.classes[label]: float(image.median()) for image, label in (task.splits["train"][i] for i in range(len(task.splits["train"])))}


@pytest.mark.parametrize("hot", [3900, 65535])
def test_a_hot_pixel_changes_nothing_but_itself(tmp_path, hot):
    def make(label: str, number: int) -> np.ndarray:
        pixels = np.full((16, 16), 800, np.uint16)
        pixels[number, number] = 900 if label == "a" else hot
        return pixels

    write_classes(tmp_path, make)
    task = opened(tmp_path)
    assert median_by_class(task) == pytest.approx({"a": round(800 / 1023 * 255) / 255, "b": round(800 / 1023 * 255) / 255})
    assert task.windows == {"more than 8 bits": (0.0, 1023.0)} and any("0 and 1023 are taken for all" in problem for problem in task.problems)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_burnt_in_tag_darkens_nothing(tmp_path, suffix):
    random = np.random.default_rng(0)

    def make(label: str, number: int) -> np.ndarray:
        pixels = random.integers(200, 1000, (32, 32)).astype(np.uint16)
        if label == "b":
            pixels[:4, :4] = 65535
        return pixels

    write_classes(tmp_path, make, suffix=suffix)
    seen = median_by_class(opened(tmp_path))
    assert abs(seen["a"] - seen["b"]) < 0.05 and seen["b"] > 0.4


def test_files_of_two_depths_get_one_window_and_are_told(tmp_path):
    write_classes(tmp_path, lambda label, number: (RAMP if label == "a" else RAMP // 4) + np.uint16(number))
    task = opened(tmp_path)
    assert task.windows == {"more than 8 bits": (0.0, 4095.0)}
    assert any("alone, their white would be 1023 (8) or 4095 (8)" in problem for problem in task.problems)
    assert {split: images.reading.window for split, images in task.splits.items()} == dict.fromkeys(task.splits, {"whole numbers": (0.0, 4095.0)})


def test_a_window_of_the_configuration_goes_first_and_is_told(tmp_path):
    write_classes(tmp_path, lambda label, number: RAMP + np.uint16(number))
    task = opened(tmp_path, window=(0.0, 8190.0))
    assert not any("taken for all" in problem for problem in task.problems)
    survey = survey_task(task, Silent(), decode=False)
    assert survey["windows"] == {"[data] window": [0.0, 8190.0]}
    assert float(task.splits["train"][0][0].max()) < 0.52


def test_eight_bits_need_no_window(tmp_path):
    write_classes(tmp_path, lambda label, number: (RAMP // 16).astype(np.uint8) + np.uint8(number))
    assert opened(tmp_path).windows == {}


def test_the_manifest_follows_the_window(tmp_path):
    """A file rewritten at the same length moves the window, and with it what every image is."""
    root, names = tmp_path / "d", []
    write_classes(root, lambda label, number: RAMP.astype(np.uint16) // 8 + np.uint16(number), suffix="tif")
    names = sorted(root.rglob("*.tif"))
    before = opened(root)
    lengths = [name.stat().st_size for name in names]
    write_classes(root, lambda label, number: RAMP + np.uint16(number), suffix="tif")
    after = opened(root)
    assert [name.stat().st_size for name in names] == lengths
    assert before.windows != after.windows and before.manifest != after.manifest


@pytest.mark.parametrize(("top", "white"), [(1.004, 1.0), (0.3, 1.0), (200.0, 255.0), (256.0, 255.0), (4090.0, 4095.0)])
def test_floating_point(tmp_path, top, white):
    """Resampling overshoots by a little: 1.004 is still a scale of 0 to 1, and 256 one of 0 to 255."""
    Image.fromarray((RAMP / 4095 * top).astype(np.float32)).save(tmp_path / "a.tif")
    assert guess_window("floating point", [sample_values(tmp_path / "a.tif")]) == (0.0, white)
    assert decode_image(tmp_path / "a.tif", mode="grey").max() == round(min(255.0, 255 * top / white))


def test_values_of_no_known_scale_stop_before_work_starts(tmp_path):
    write_classes(tmp_path, lambda label, number: (RAMP - 2000.0 + number).astype(np.float32), suffix="tif")
    with pytest.raises(DataError, match=r"floating-point numbers.*\[data\] window = \[-2000, "):
        opened(tmp_path)
    assert opened(tmp_path, window=(-2000.0, 2100.0)).windows == {"[data] window": (-2000.0, 2100.0)}


def test_an_image_of_a_kind_that_was_not_seen_is_refused(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match="more than 8 bits among images of another kind"):
        decode_image(tmp_path / "a.png", mode="grey", window={"DICOM": (0.0, 100.0)})


def test_sparse_bright_spots_are_no_extremes():
    """Two in a hundred pixels of many different greys, as cells in a dark field: white holds them."""
    values = np.full(10_000, 200.0)
    values[:200] = np.linspace(1000, 16000, 200)
    assert guess_window("whole numbers", [thin_out(values)]) == (0.0, 16383.0)


def png16(path: Path, pixels: np.ndarray, colour: int) -> Path:
    """A PNG of 16 bits by hand (ISO 15948): colour type 2 is RGB, 4 grey with opacity, 6 RGB with opacity."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts))
    return path


def tiff16(path: Path, values: np.ndarray, *, order: str = "<", planar: int = 1, deflate: bool = False, extra: int | None = None) -> Path:
    """A TIFF of 16-bit colours by hand (TIFF 6.0, sections 2 and 8), in one strip, or one for each plane."""
    height, width, channels = values.shape
    kept = [values] if planar == 1 else list(np.moveaxis(values, -1, 0))
    strips = [zlib.compress(part.astype(f"{order}u2").tobytes()) if deflate else part.astype(f"{order}u2").tobytes() for part in kept]
    starts = np.cumsum([8, *map(len, strips)]).tolist()
    tags = {
        256: [width], 257: [height], 258: [16] * channels, 259: [8 if deflate else 1], 262: [2], 273: starts[:-1], 277: [channels], 278: [height],
        279: [len(strip) for strip in strips], 284: [planar], **({} if extra is None else {338: [extra]}),
    }  # fmt: skip
    start = starts[-1] + starts[-1] % 2
    entries, behind = b"", b""
    for tag, numbers in sorted(tags.items()):
        raw = struct.pack(f"{order}{len(numbers)}{'I' if tag in (273, 279) else 'H'}", *numbers)
        entries += struct.pack(f"{order}HHI", tag, 4 if tag in (273, 279) else 3, len(numbers))
        if len(raw) <= 4:
            entries += raw.ljust(4, b"\0")
        else:
            entries += struct.pack(f"{order}I", start + 2 + 12 * len(tags) + 4 + len(behind))
            behind += raw
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    path.write_bytes((head + b"".join(strips)).ljust(start, b"\0") + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + behind)
    return path


COLOURS = np.random.default_rng(0).integers(0, 4096, (12, 20, 3)).astype(np.uint16)


def shown(path: Path, **options) -> np.ndarray:
    return decode_image(path, mode="rgb", **options).permute(1, 2, 0).numpy().astype(int)


def on_twelve_bits(values: np.ndarray) -> np.ndarray:
    return np.rint(values / 4095 * 255)


@pytest.mark.parametrize("window", [None, (0.0, 4095.0)])
def test_colours_of_16_bits_keep_all_of_them(tmp_path, window):
    opaque = np.dstack([COLOURS, np.full((12, 20), 65535)])
    for path in (
        png16(tmp_path / "a.png", COLOURS, 2),
        png16(tmp_path / "b.png", opaque, 6),
        tiff16(tmp_path / "a.tif", COLOURS),
        tiff16(tmp_path / "b.tif", COLOURS, order=">"),
        tiff16(tmp_path / "c.tif", COLOURS, deflate=True),
        tiff16(tmp_path / "d.tif", COLOURS, order=">", deflate=True),
        *(tiff16(tmp_path / f"extra{extra}.tif", opaque, extra=extra) for extra in (0, 1, 2)),
    ):
        assert read_header(path).deep == "whole numbers" and read_header(path).mode == "rgb"
        assert np.abs(shown(path, window=window) - on_twelve_bits(COLOURS)).max() <= 1, path.name


def test_grey_of_16_bits_with_opacity_is_laid_on_white(tmp_path):
    grey, alpha = COLOURS[..., 0].astype(float), np.where(np.arange(20) < 7, 0, 65535) * np.ones((12, 1))
    path = png16(tmp_path / "a.png", np.dstack([grey, alpha]), 4)
    found = decode_image(path, mode="grey", window=(0.0, 4095.0))[0].numpy().astype(int)
    assert np.abs(found - np.where(alpha > 0, on_twelve_bits(grey), 255)).max() <= 1 and read_header(path).mode == "grey"


@pytest.mark.parametrize("deflate", [False, True])
def test_16_bit_colours_in_planes_are_refused(tmp_path, deflate):
    """Pillow 13.0.0 reads them as another picture where they are not compressed."""
    with pytest.raises(UnreadableImage, match="separate planes"):
        decode_image(tiff16(tmp_path / "a.tif", COLOURS, planar=2, deflate=deflate), mode="rgb")


def test_coloured_folder_of_12_bits(tmp_path):
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(6):
            png16(tmp_path / label / f"{number}.png", COLOURS + np.uint16(number), 2)
    task = opened(tmp_path)
    assert task.windows == {"more than 8 bits": (0.0, 4095.0)} and float(task.splits["train"][0][0].max()) > 0.98


def test_masks_that_mark_nothing_or_everything_are_told(tmp_path):
    lines = ["filename,label,mask"]
    for number in range(12):
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (16, 16), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        mask = np.zeros((16, 16), np.uint8)
        mask[: (0, 16, 5)[number % 3]] = 255
        Image.fromarray(mask).save(tmp_path / f"m{number}.png")
        lines.append(f"{number}.png,{'ab'[number % 2]},m{number}.png")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    told = " ".join(opened(tmp_path).problems)
    assert "4 of 12 masks looked at mark nothing" in told and "4 of 12 masks looked at mark the whole image" in told
    assert "taken for masks of the shortcut" in told
    Image.fromarray(np.full((16, 16), 100, np.uint8) + np.eye(16, dtype=np.uint8)).save(tmp_path / "m5.png")
    with pytest.raises(DataError, match="the mask m5.png of 5.png: .*none is black"):
        opened(tmp_path)
