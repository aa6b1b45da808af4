"""What the critic is shown of a file: its own pixels with the segments over them; and a run begun with the network's pixels goes on so."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.utils.data import Subset

from rightreasons.common.progress import Silent
from rightreasons.critic.case import Cases, warn_of_lettering
from rightreasons.critic.pictures import FIRST_STYLE, LONGEST, STYLE, render_pictures
from rightreasons.data.images import ImageFiles, PixelCache, Reading, labels_of
from rightreasons.data.listing import Entry
from rightreasons.data.loading import StoredImages, own_pixels, read_all
from rightreasons.data.task import TensorImages
from rightreasons.explain.evidence import Evidence
from rightreasons.records import Attribution, Segmentation, Selection
from rightreasons.runs.folder import RunFolder

SIDE = 16


def printed(width: int = 900, height: int = 600) -> Image.Image:
    """A photograph with small print at its top, which nobody can read at 16 pixels."""
    pixels = np.random.default_rng(width).normal(90, 8, (height, width, 3)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    ImageDraw.Draw(image).text((20, 20), "MUSTERMANN, ERIKA 12.08.1964", fill="white", font=ImageFont.load_default(16))
    return image


def files(folder: Path, images: list[Image.Image]) -> ImageFiles:
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(images):
        image.save(folder / f"{number}.png")
    entries = [Entry(f"{number}.png", "a") for number in range(len(images))]
    reading = Reading(lambda name: folder / name, "rgb", (SIDE, SIDE), None, resize=True)
    return ImageFiles(entries, labels_of(entries, ("a",)), reading, skipped={}, cache=PixelCache())


def inspected(train, folder: Path, index: int = 0) -> Cases:
    images = read_all(train, [index])
    segments = torch.full((1, SIDE, SIDE), -1)
    segments[0, 4:12, 2:8] = 0
    one = torch.zeros(1)
    selection = Selection("random", images.indices, images.labels, one)
    folder.mkdir(exist_ok=True)
    segmentation = Segmentation(segments, segments >= 0, torch.ones(1, 1), ("segmented",))
    attribution = Attribution(torch.zeros(1, SIDE, SIDE), images.labels, one)
    evidence = Evidence(StoredImages(train, [index]), selection, attribution, segmentation, 0.0)
    return Cases(evidence, (), RunFolder(folder))


def clean(pictures) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(pictures.clean)))


def test_the_critic_sees_the_files_own_pixels(tmp_path):
    image = printed()
    found = inspected(files(tmp_path / "data", [image]), tmp_path / "run")
    pictures = found.pictures(0)
    assert (clean(pictures) == np.asarray(image)).all() and pictures.style == STYLE
    # The segment covers rows 4 to 12 and columns 2 to 8 of 16 of the whole file, whatever its proportions.
    margin = 44
    flat = np.asarray(Image.open(io.BytesIO(pictures.map)))[margin:-margin, margin:-margin]
    marked = (flat == flat[600 // 2, 900 * 3 // 16]).all(-1)
    rows, columns = marked.nonzero()
    assert [rows.min(), rows.max() + 1, columns.min(), columns.max() + 1] == [4 * 600 // 16, 12 * 600 // 16, int(2 * 900 / 16), 8 * 900 // 16]
    assert found.pictures(0) == pictures, "read back"


def test_large_files_are_bounded(tmp_path):
    found = inspected(files(tmp_path / "data", [printed(2000, 500)]), tmp_path / "run")
    assert clean(found.pictures(0)).shape == (LONGEST // 4, LONGEST, 3)


def test_small_print_is_warned_of(tmp_path):
    reporter = Silent()
    warn_of_lettering(inspected(files(tmp_path / "data", [printed()]), tmp_path / "run"), reporter, close_ups=False)
    assert any("seem to have text burned into them" in note for note in reporter.notes)


def test_a_close_up_has_pixels_that_the_whole_image_has_not(tmp_path):
    """The whole of a large file is shown at half its size; from near nothing is lost, and print is looked for that only becomes legible there."""
    whole = (np.arange(1000)[:, None, None] * 7 + np.arange(1600)[:, None] * 13 + np.arange(3) * 50).astype(np.uint8)
    found = inspected(files(tmp_path / "data", [Image.fromarray(whole)]), tmp_path / "run")
    assert clean(found.pictures(0)).shape == (640, LONGEST, 3)
    near = found.close_up(0, 0)
    # The segment lies in rows 250 to 750 and columns 200 to 800: a square of 600, and a quarter of that on each side.
    assert (np.asarray(Image.open(io.BytesIO(near.clean))) == whole[50:950, 50:950]).all(), "pixel for pixel"
    assert (near.width, near.height) == (900 / 1600, 900 / 1000)
    tiny = Image.new("RGB", (2000, 1200), (90, 90, 90))
    ImageDraw.Draw(tiny).text((40, 40), "MUSTERMANN, ERIKA 12.08.1964", fill="white", font=ImageFont.load_default(11))
    small = inspected(files(tmp_path / "small", [tiny]), tmp_path / "small-run")
    notes = {}
    for close_ups in (False, True):
        reporter = Silent()
        warn_of_lettering(small, reporter, close_ups=close_ups)
        notes[close_ups] = len(reporter.notes)
    assert notes == {False: 0, True: 1}


def test_a_run_begun_with_the_networks_pixels_goes_on_so(tmp_path):
    """Its answers are kept by the bytes of the pictures and by their style: others would be asked, and paid, anew."""
    found = inspected(files(tmp_path / "data", [printed(), printed(300, 200)]), tmp_path / "run", 1)
    (tmp_path / "run" / "pictures").mkdir()
    (tmp_path / "run" / "pictures" / "000000-clean.png").write_bytes(b"as it was drawn")
    pictures = found.pictures(0)
    assert pictures == render_pictures(found.evidence.images[0], found.shown(0), FIRST_STYLE) and pictures.style == FIRST_STYLE
    assert clean(pictures).shape == (512, 512, 3)


def test_a_data_set_without_files_shows_what_it_has(tmp_path):
    pixels = torch.arange(3 * SIDE * SIDE, dtype=torch.uint8).view(1, 3, SIDE, SIDE)
    train = TensorImages(pixels, torch.zeros(1, dtype=torch.int64))
    found = inspected(train, tmp_path / "run")
    assert own_pixels(train, 0, LONGEST) is None and torch.equal(found.image(0), pixels[0].float() / 255)


def test_a_part_of_a_data_set_shows_the_files_of_the_whole(tmp_path):
    train = files(tmp_path / "data", [printed(40, 30), printed(50, 30)])
    found = own_pixels(Subset(train, [1, 0]), 0, LONGEST)
    assert found is not None and found.shape == (3, 30, 50)
