"""A fuzz of everything that reads what others wrote: whatever comes, it is read, or refused in an error that was meant.

`make fuzz` runs it for FUZZ_EXAMPLES inputs a reader; CI runs a few, always the same. The smallest inputs that once broke a reader stand as
`@example`, so that each run tries them first. A reader may raise RightReasonsError (MalformedAnswer for an LVLM's answer) and nothing else, gives
images of the size that was asked for, and ends within a few seconds.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from rightreasons.config import parse_config, parse_data, read_config
from rightreasons.critic.fused import parse_fused
from rightreasons.critic.judge import parse_verdicts
from rightreasons.critic.parse import MalformedAnswer, read_paragraphs, read_values
from rightreasons.data import open_data
from rightreasons.data.decode import decode_image, decode_mask
from rightreasons.data.loading import read_batches
from rightreasons.errors import RightReasonsError

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "15"))
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=timedelta(seconds=10),
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)

# Words that mean something to one reader or another, and some that mean nothing.
WORDS = st.sampled_from(
    "train test val validation images masks mask label y x a split place id filename image path cat dog nan NA None null 0 1 1.0 0.5 -1 255 "
    "patient p01 patient00001 .png .jpg .dcm ../up C:\\x A|B [0,1] {'a':1} true yes S1 S2 metadata labels fold0 _mask".split()
) | st.text(max_size=8)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
) | st.sampled_from(
    ["cat", "dog", "train", "test", "val", "masks", "images", "a_mask.png", "p01", "fold1", "labels.csv", "metadata.csv", "IMG_1.dcm"]
)


def picture(draw, kinds=("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")) -> bytes:
    """A small image of some mode, in some format that can hold it."""
    mode = draw(st.sampled_from(["L", "RGB", "RGBA", "LA", "P", "1", "I;16", "F", "CMYK"]))
    width, height = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    if mode == "I;16":
        image = Image.fromarray(random.integers(0, draw(st.sampled_from([2, 1024, 65536])), (height, width)).astype(np.uint16))
    elif mode == "F":
        values = random.random((height, width)).astype(np.float32) * draw(st.sampled_from([1.0, 255.0, 1e9]))
        values.flat[0] = draw(st.sampled_from([0.0, np.nan, np.inf]))
        image = Image.fromarray(values)
    else:
        image = Image.fromarray(random.integers(0, 256, (height, width, 3)).astype(np.uint8)).convert(mode)
    buffer = io.BytesIO()
    try:
        image.save(buffer, draw(st.sampled_from(kinds)))
    except (OSError, ValueError, KeyError, TypeError):  # a format that cannot hold this mode
        buffer = io.BytesIO()
        image.save(buffer, "TIFF")
    return buffer.getvalue()


@st.composite
def damaged(draw, whole=None) -> bytes:
    """An image file, or its bytes with some changed, cut off or put in."""
    content = bytearray(picture(draw) if whole is None else draw(whole))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, max(0, min(len(content) - 1, draw(st.sampled_from([16, 64, 10_000]))))))
        change = draw(st.sampled_from(["set", "cut", "insert"]))
        if change == "set" and content:
            content[place] = draw(st.integers(0, 255))
        elif change == "cut":
            del content[place:]
        else:
            content[place:place] = draw(st.binary(max_size=8))
    return bytes(content)


@st.composite
def dicoms(draw) -> bytes:
    """A DICOM file whose elements may contradict its pixels."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SOPClassUID, file.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    rows, columns = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    file.Rows, file.Columns = rows, columns
    file.SamplesPerPixel = draw(st.sampled_from([1, 1, 3, 2]))
    file.PhotometricInterpretation = draw(st.sampled_from(["MONOCHROME2", "MONOCHROME1", "RGB", "PALETTE COLOR", "YBR_FULL", "NONE"]))
    file.BitsAllocated = draw(st.sampled_from([8, 16, 16, 32, 1]))
    file.BitsStored = draw(st.sampled_from([8, 12, 16, 10]))
    file.HighBit = draw(st.sampled_from([7, 11, 15, 9]))
    file.PixelRepresentation = draw(st.sampled_from([0, 1]))
    for name, values in {
        "WindowCenter": [0, 40, 1e30, "", [40, 80]],
        "WindowWidth": [0, 1, 400, -5, [400, 80]],
        "RescaleSlope": [0, 1, -1, 1e-30],
        "RescaleIntercept": [0, -1024],
        "PixelPaddingValue": [0, 4095],
        "NumberOfFrames": [1, 0, 2],
        "PlanarConfiguration": [0, 1, 7],
    }.items():
        if draw(st.booleans()):
            setattr(file, name, draw(st.sampled_from(values)))
    size = rows * columns * file.SamplesPerPixel * max(1, file.BitsAllocated // 8) + draw(st.sampled_from([0, 0, 0, -1, 1]))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    file.add_new(0x7FE00010, "OW", random.integers(0, 256, max(0, size)).astype(np.uint8).tobytes())
    buffer = io.BytesIO()
    file.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def check_image(content: bytes, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        for mode, channels in (("grey", 1), ("rgb", 3)):
            try:
                image = decode_image(path, size=(12, 10), mode=mode)
            except RightReasonsError:
                continue
            assert image.shape == (channels, 12, 10) and image.dtype == torch.uint8
        try:
            mask = decode_mask(path, size=(12, 10))
        except RightReasonsError:
            return
        assert mask.shape == (12, 10) and mask.dtype == torch.bool


@fuzzed
@given(damaged(), st.sampled_from(["a.png", "a.jpg", "a.tif", "a.dcm", "a"]))
@example(b"", "a.png")
@example(b"II*\0" + bytes(4), "a.tif")
def test_images_and_masks(content, name):
    check_image(content, name)


@fuzzed
@given(damaged(dicoms()))
@example(bytes(128) + b"DICM")
def test_dicom(content):
    check_image(content, "a.dcm")


@st.composite
def tables(draw) -> bytes:
    """CSV as people have it, and not."""
    separator = draw(st.sampled_from([",", ";", "\t", "|"]))
    rows = draw(st.lists(st.lists(WORDS, min_size=1, max_size=6), max_size=8))
    images = [f"i{number}.png" for number in range(6)]
    if draw(st.booleans()):
        rows = [["filename", "label", *(row[:1] for row in rows[:1])][:2], *([name, draw(WORDS)] for name in images)]
    text = "\n".join(separator.join(map(str, row)) for row in rows)
    return draw(st.sampled_from(["", "\ufeff"])).encode() + text.encode(draw(st.sampled_from(["utf-8", "utf-16", "latin-1"])), "replace")


def check_folder(root: Path, **more) -> None:
    try:
        task = open_data(parse_data({"path": str(root), "size": 16, **more}, source="fuzz"), root=root, seed=0)
        for split in task.splits.values():
            for batch in read_batches(split):
                assert batch.images.shape[2:] == (16, 16) and batch.labels.max() < len(task.classes)
    except RightReasonsError as error:
        assert str(error)


@fuzzed
@given(tables(), st.sampled_from(["labels.csv", "metadata.csv", "train.csv", "labels.tsv"]))
def test_tables(table, name):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number in range(6):
            Image.new("L", (8, 8), 40 * number).save(root / f"i{number}.png")
        (root / name).write_bytes(table)
        check_folder(root)


@fuzzed
@given(st.lists(st.tuples(st.lists(NAMES, min_size=1, max_size=4), damaged()), max_size=12))
def test_folders(files):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        root.mkdir()
        for parts, content in files:
            path = root.joinpath(*parts)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            except OSError:  # the name is a folder already, or too long for this file system
                continue
        check_folder(root)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 500) | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)
KEYS = ("data", "model", "classes", "sample", "attribute", "segment", "critic", "align", "run")
SETTING = st.sampled_from(
    "path size window names columns source checkpoint mean std lvlm votes epochs lambda ratio description components seed".split()
)


@fuzzed
@given(st.dictionaries(st.sampled_from(KEYS) | WORDS, st.dictionaries(SETTING | WORDS, VALUES, max_size=4) | VALUES, max_size=6))
def test_configurations(tables):
    try:
        config = parse_config(tables, source="fuzz")
    except RightReasonsError as error:
        assert str(error).startswith("fuzz: ")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_text(config.to_toml(), encoding="utf-8")
        assert read_config(path) == config


@fuzzed
@given(st.binary(max_size=200) | tables())
@example(b"[data]\npath = 'a'\n[data]\n")
def test_configuration_files(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_bytes(content)
        with pytest.raises(RightReasonsError, match=r"config\.toml"):  # no file of noise is a whole configuration
            read_config(path)


@st.composite
def answers(draw) -> str:
    """What a model may write: an answer with thoughts, fences, slips and repetitions around it."""
    values = st.sampled_from(["spurious", "relevant", "unsure", "Spurious", "maybe", "", 1, None, ["spurious"]])
    said = {name: draw(values) for name in draw(st.lists(st.sampled_from(["S1", "S2", "S3", "s1", "S10", "", "a"]), max_size=4))}
    segments = {name: {"covers": "x", "reason": draw(WORDS), "verdict": value} for name, value in said.items()}
    shape = draw(st.sampled_from([said, segments, {"image_observation": "a", "class_region": "b", "segments": segments}, [said]]))
    text = json.dumps(shape)
    for _ in range(draw(st.integers(0, 4))):
        around = draw(
            st.sampled_from(["<think>{}</think>%s", "%s</think>", "```json\n%s\n```", "%s%s", "{%s", "%s}", "S1: %s", "<think>%s", "%s\n\nDone {}."])
        )
        text = around.replace("%s", text)
    cut = draw(st.integers(0, len(text)))
    return text[:cut] + draw(st.text(max_size=4)) + text[cut:] if draw(st.booleans()) else text


@fuzzed
@given(answers() | st.text(max_size=200))
@example("{" * 3000)
@example('{"S1": ' * 500)
@example("S1: " * 2000)
def test_answers(text):
    ids = ["S1", "S2"]
    read_paragraphs(text)
    for parse in (parse_verdicts, parse_fused):
        try:
            found = parse(text, ids)
        except MalformedAnswer as error:
            assert str(error)
            continue
        if parse is parse_verdicts:
            assert list(found) == ids and read_values(found) == found
