"""DICOM: grey values from the formulas of PS3.3 C.11.2.1.2 in loops, over files that pydicom writes; and that nobody's name is read."""

from __future__ import annotations

import io
import math
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from PIL import Image

pydicom = pytest.importorskip("pydicom")

from pydicom.dataset import Dataset, FileDataset, FileMetaDataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import (  # noqa: E402
    MPEG2MPML,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSLossless,
    RLELossless,
)

from rightreasons.config import DataConfig  # noqa: E402
from rightreasons.data import dicom, open_data  # noqa: E402
from rightreasons.data.decode import Header, decode_image, read_header  # noqa: E402
from rightreasons.errors import MissingExtra, UnreadableImage  # noqa: E402
from tests.support.helpers import environment  # noqa: E402

NAME = "Doe^Jane^Unmistakable"


def build(stored: np.ndarray, *, bits: int = 16, photometric: str = "MONOCHROME2", syntax: UID = ExplicitVRLittleEndian, **elements) -> FileDataset:
    """A secondary capture of one frame with a patient in its header; ``elements`` come on top, and None takes one away."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = syntax
    dataset = FileDataset(
        "", {}, file_meta=meta, preamble=bytes(128), is_implicit_VR=syntax == ImplicitVRLittleEndian, is_little_endian=syntax != ExplicitVRBigEndian
    )
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = NAME, "12345-unmistakable", "19700101"
    dataset.InstitutionName, dataset.ImageComments = "Unmistakable Hospital", NAME
    dataset.Rows, dataset.Columns = stored.shape[:2]
    dataset.SamplesPerPixel = stored.shape[2] if stored.ndim == 3 else 1
    if stored.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = 8 * stored.dtype.itemsize
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.add_new(0x7FE00010, "OB" if dataset.BitsAllocated == 8 else "OW", stored.astype(stored.dtype.newbyteorder("<")).tobytes())
    for name, value in elements.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return dataset


def save(dataset: FileDataset, path):
    dataset.save_as(path, enforce_file_format=False)
    return path


def ramp(low: int, high: int, kind=np.uint16) -> np.ndarray:
    return np.linspace(low, high, 12 * 20).round().reshape(12, 20).astype(kind)


def grey(path, **options) -> np.ndarray:
    return decode_image(path, mode="grey", **options)[0].numpy().astype(int)


def standard(x: float, center: float, width: float, function: str) -> float:
    """C.11.2.1.2.1 and C.11.2.1.3, with an output of 0 to 255."""
    if function == "LINEAR":
        if x <= center - 0.5 - (width - 1) / 2:
            return 0
        if x > center - 0.5 + (width - 1) / 2:
            return 255
        return ((x - (center - 0.5)) / (width - 1) + 0.5) * 255
    if function == "LINEAR_EXACT":
        if x <= center - width / 2:
            return 0
        if x > center + width / 2:
            return 255
        return ((x - center) / width + 0.5) * 255
    return 255 / (1 + math.exp(-4 * (x - center) / width))


def shown(stored: np.ndarray, grey_of) -> np.ndarray:
    return np.array([[grey_of(int(value)) for value in row] for row in stored])


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
@pytest.mark.parametrize(("bits", "low", "high", "kind"), [(12, 0, 4095, np.uint16), (16, 0, 65535, np.uint16), (16, -32768, 32767, np.int16)])
def test_the_files_own_window(tmp_path, photometric, function, bits, low, high, kind):
    stored = ramp(low, high, kind)
    center, width = (low + high) / 2 + 100, (high - low) / 3
    slope, intercept = 0.5, -200.0
    named = {"VOILUTFunction": function} if function else {}
    path = save(
        build(stored, bits=bits, photometric=photometric, RescaleSlope=slope, RescaleIntercept=intercept, WindowCenter=center * slope + intercept,
              WindowWidth=width * slope, **named),
        tmp_path / "a.dcm",
    )  # fmt: skip
    expected = shown(stored, lambda x: standard(x * slope + intercept, center * slope + intercept, width * slope, function or "LINEAR"))
    expected = 255 - expected if photometric == "MONOCHROME1" else expected
    assert np.abs(grey(path) - expected).max() <= 0.51
    assert len(np.unique(grey(path))) > 50 and read_header(path) == Header(20, 12, "grey")
    assert (decode_image(path, mode="rgb").numpy() == grey(path)).all()


def test_the_narrowest_window_is_a_threshold(tmp_path):
    stored = ramp(0, 50)
    path = save(build(stored, WindowCenter=20, WindowWidth=1), tmp_path / "a.dcm")
    assert (grey(path) == shown(stored, lambda x: 0 if x <= 19.5 else 255)).all()


def test_the_first_of_several_windows(tmp_path):
    stored = ramp(0, 4000)
    one = save(build(stored, WindowCenter=1000, WindowWidth=500), tmp_path / "a.dcm")
    several = save(build(stored, WindowCenter=[1000, 3000], WindowWidth=[500, 100]), tmp_path / "b.dcm")
    assert (grey(one) == grey(several)).all() and grey(one).std() > 0


def test_window_comes_before_bits_are_dropped(tmp_path):
    stored = np.full((8, 8), 1000, np.uint16) + np.eye(8, dtype=np.uint16) * 10
    assert 1000 >> 8 == 1010 >> 8
    path = save(build(stored, WindowCenter=1006, WindowWidth=21), tmp_path / "a.dcm")
    expected = shown(stored, lambda x: standard(x, 1006, 21, "LINEAR"))
    assert np.abs(grey(path) - expected).max() <= 0.51 and np.ptp(grey(path)) > 100
    assert (grey(path, window=(1000.0, 1010.0)) == np.eye(8) * 255).all(), "what the configuration says goes first"


def test_no_window(tmp_path):
    """From the darkest to the brightest; an empty element is as none, and so is half a window."""
    stored = ramp(500, 900)
    expected = shown(stored, lambda x: (x - 500) / 400 * 255)
    for number, elements in enumerate(
        ({}, {"WindowCenter": None, "WindowWidth": None}, {"WindowCenter": 600}, {"RescaleSlope": "", "RescaleIntercept": ""})
    ):
        dataset = build(stored)
        for name, value in elements.items():
            setattr(dataset, name, value)
        dataset.VOILUTSequence = Sequence()
        assert np.abs(grey(save(dataset, tmp_path / f"{number}.dcm")) - expected).max() <= 0.51
    constant = save(build(np.full((8, 8), 700, np.uint16)), tmp_path / "constant.dcm")
    assert (grey(constant) == 0).all()


@pytest.mark.parametrize("given", [{"RescaleSlope": 2}, {"RescaleIntercept": -1024}, {"RescaleSlope": 2, "RescaleIntercept": ""}])
def test_half_a_rescale_counts_with_what_changes_nothing_beside_it(tmp_path, given):
    """C.11.1 wants slope and intercept together. The window is in the units after them."""
    stored = ramp(0, 2000)
    path = save(build(stored, WindowCenter=500, WindowWidth=800, **given), tmp_path / "a.dcm")
    slope, intercept = given.get("RescaleSlope", 1), given.get("RescaleIntercept") or 0
    assert np.abs(grey(path) - shown(stored, lambda x: standard(x * slope + intercept, 500, 800, "LINEAR"))).max() <= 0.51


@pytest.mark.parametrize(("padding", "limit"), [(-2000, None), (-2000, -1900)])
def test_padding_is_left_aside(tmp_path, padding, limit):
    stored = ramp(-1000, 1000, np.int16)
    stored[:, 0], stored[:, 1] = padding, limit or padding
    more = {} if limit is None else {"PixelPaddingRangeLimit": limit}
    path = save(build(stored, PixelPaddingValue=padding, **more), tmp_path / "a.dcm")
    inside = stored[:, 2:]
    low, high = int(inside.min()), int(inside.max())
    assert np.abs(grey(path)[:, 2:] - shown(inside, lambda x: (x - low) / (high - low) * 255)).max() <= 0.51 and (grey(path)[:, :2] == 0).all()
    everything = save(build(np.full((8, 8), -2000, np.int16), PixelPaddingValue=-2000), tmp_path / "b.dcm")
    assert (grey(everything) == 0).all()


@pytest.mark.parametrize("bits", [8, 16])
def test_tables(tmp_path, bits):
    """A modality's table and one of the values of interest, one after the other; both start at a value of their own."""
    stored = ramp(0, 30)
    first, second = Dataset(), Dataset()
    first.LUTDescriptor, first.ModalityLUTType = [32, 0, 16], "US"
    second.LUTDescriptor = [64, 20, bits]
    first.add_new("LUTData", "US", [3 * number + 5 for number in range(32)])
    second.add_new("LUTData", "US", [number * (2**bits // 64) for number in range(64)])
    path = save(build(stored, ModalityLUTSequence=Sequence([first]), VOILUTSequence=Sequence([second])), tmp_path / "a.dcm")

    def grey_of(x: int) -> float:
        value = 3 * min(x, 31) + 5
        place = min(max(value - 20, 0), 63)
        return place * (2**bits // 64) / (2**bits - 1) * 255

    assert np.abs(grey(path) - shown(stored, grey_of)).max() <= 0.51 and np.ptp(grey(path)) > 150


@pytest.mark.parametrize("entries_as", ["words", "packed", "bytes"])
def test_a_table_of_8_bits_with_more_than_256_places(tmp_path, entries_as):
    """PS3.3 C.11.2.1.1: an entry's place is the value less the first one, held within the table; C.8.11.3.1.5 allows entries of 8 bits."""
    stored = ramp(0, 4095)
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 8]
    entries = (np.arange(4096) // 16).astype(np.uint8)
    if entries_as == "words":
        table.add_new("LUTData", "US", entries.tolist())
    elif entries_as == "packed":
        table.add_new("LUTData", "US", entries.view("<u2").tolist())
    else:
        table.add_new("LUTData", "OW", entries.tobytes())
    path = save(build(stored, bits=12, VOILUTSequence=Sequence([table])), tmp_path / "a.dcm")
    assert (grey(path) == stored // 16).all()


@pytest.mark.parametrize("first", [-1024, 64512])
def test_a_table_that_starts_below_zero(tmp_path, first):
    """64512 is -1024 where a writer left the sign away (PS3.3 C.11.2.1.1: signed, where values are)."""
    table = Dataset()
    table.add_new("LUTDescriptor", "SS" if first < 0 else "US", [256, first, 8])
    table.add_new("LUTData", "US", list(range(256)))
    path = save(build(ramp(0, 239), RescaleSlope=1, RescaleIntercept=-1024, VOILUTSequence=Sequence([table])), tmp_path / "a.dcm")
    assert (grey(path) == ramp(0, 239)).all()


@pytest.mark.parametrize("padded", [False, True])
def test_a_palette_of_8_bits_with_more_than_256_entries(tmp_path, padded):
    """PS3.3 C.7.6.3.1.6: entries of 8 bits stand in a byte, or in 16 bits whose upper half is empty."""
    stored = ramp(0, 1023)
    dataset = build(stored, bits=16, photometric="PALETTE COLOR")
    for shift, name in ((2, "Red"), (3, "Green"), (4, "Blue")):
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [1024, 0, 8])
        entries = (np.arange(1024) >> shift).astype("<u2" if padded else np.uint8)
        setattr(dataset, f"{name}PaletteColorLookupTableData", entries.tobytes())
    found = decode_image(save(dataset, tmp_path / "a.dcm"), mode="rgb").permute(1, 2, 0).numpy()
    assert (found == np.stack([stored >> 2, stored >> 3, stored >> 4], -1)).all()


def functional_groups(where: str) -> dict[str, Sequence]:
    """Rescale and window as enhanced objects keep them (PS3.3 C.7.6.16.2.9 and C.7.6.16.2.10), with somebody's comment beside them."""
    value, view, group, other = Dataset(), Dataset(), Dataset(), Dataset()
    value.RescaleSlope, value.RescaleIntercept, value.RescaleType = 1, -1024, "HU"
    view.WindowCenter, view.WindowWidth = 40, 400
    other.ImageComments = NAME
    for target, name, item in ((group, "PixelValueTransformationSequence", value), (group, "FrameVOILUTSequence", view)):
        setattr(target, name, Sequence([item]))
    group.ImageComments = NAME
    shared, frames = (group, other) if where == "shared" else (other, group)
    return {"SharedFunctionalGroupsSequence": Sequence([shared]), "PerFrameFunctionalGroupsSequence": Sequence([frames])}


@pytest.mark.parametrize("where", ["shared", "per frame"])
@pytest.mark.parametrize("window", [None, (-160.0, 240.0)])
def test_functional_groups_of_one_frame(tmp_path, where, window):
    stored = ramp(0, 2000)
    plain = build(stored, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400)
    new = save(build(stored, NumberOfFrames=1, **functional_groups(where)), tmp_path / "a.dcm")
    assert (grey(new, window=window) == grey(save(plain, tmp_path / "b.dcm"), window=window)).all() and np.ptp(grey(new)) == 255
    assert read_header(new).deep is None
    read = dicom._read(new, pixels=True)
    assert NAME not in str(read) and not {element.tag.group for element in read} - {0x0028, 0x7FE0}


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("padding", [0, 4095])
@pytest.mark.parametrize("elements", [{}, {"WindowCenter": 2048, "WindowWidth": 4096}])
def test_padding_is_background_whatever_its_value(tmp_path, photometric, padding, elements):
    stored = ramp(1, 4094)
    stored[:, :3] = padding
    path = save(build(stored, bits=12, photometric=photometric, PixelPaddingValue=padding, **elements), tmp_path / "a.dcm")
    for window in (None, (0.0, 4095.0), {"DICOM": (0.0, 4095.0)}):
        assert (grey(path, window=window)[:, :3] == 0).all() and grey(path, window=window)[:, 3:].max() > 200


def test_eight_bits_without_a_window_are_as_they_are(tmp_path):
    stored = ramp(40, 90, np.uint8)
    path = save(build(stored, bits=8), tmp_path / "a.dcm")
    assert (grey(path) == stored).all() and read_header(path).deep is None
    assert read_header(save(build(ramp(0, 900)), tmp_path / "b.dcm")).deep == "DICOM"


def test_one_window_for_files_without_any(tmp_path):
    """Files of a folder that have no window get one together, and a burnt-in tag does not move it."""
    tissue = np.random.default_rng(0).integers(200, 1000, (32, 32)).astype(np.uint16)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(6):
            stored = tissue + np.uint16(number)
            if label == "b":
                stored[:4, :4] = 4095
            save(build(stored, bits=12), tmp_path / label / f"{number}.dcm")
    task = open_data(DataConfig(path="."), root=tmp_path, seed=0)
    low, high = float(tissue.min()), float(tissue.max()) + 5
    assert task.windows == {"DICOM without a window of its own": (low, high)}
    for images in task.splits.values():
        for image, _ in (images[row] for row in range(len(images))):
            assert float(image[0, 8:].mean()) == pytest.approx((float(tissue[8:].mean()) - low) / (high - low), abs=0.01)


def test_floating_point_pixels(tmp_path):
    """FloatPixelData (PS3.3 C.7.6.24): parametric maps have no other pixels."""
    values = np.linspace(-1.5, 2.5, 240).reshape(12, 20).astype(np.float32)
    dataset = build(ramp(0, 9), PixelData=None, BitsStored=None, HighBit=None, PixelRepresentation=None)
    dataset.BitsAllocated = 32
    dataset.add_new("FloatPixelData", "OF", values.tobytes())
    path = save(dataset, tmp_path / "a.dcm")
    assert np.abs(grey(path, window=(-1.5, 2.5)) - (values + 1.5) / 4 * 255).max() <= 0.51 and read_header(path).deep == "DICOM"
    assert np.abs(grey(path) - (values + 1.5) / 4 * 255).max() <= 0.51


@pytest.mark.parametrize("window", [None, (0.0, 4095.0)])
def test_colours_of_12_bits(tmp_path, window):
    pixels = np.random.default_rng(0).integers(0, 4096, (6, 8, 3), dtype=np.uint16)
    path = save(build(pixels, bits=12, photometric="RGB"), tmp_path / "a.dcm")
    assert np.abs(decode_image(path, mode="rgb", window=window).permute(1, 2, 0).numpy() - pixels / 4095 * 255).max() <= 1


def test_bits_above_the_stored_ones_are_not_pixels(tmp_path):
    """Overlays were once kept in them."""
    stored = ramp(0, 4095)
    path = save(build(stored | 0xF000, bits=12, WindowCenter=2048, WindowWidth=4096), tmp_path / "a.dcm")
    assert (grey(path) == grey(save(build(stored, bits=12, WindowCenter=2048, WindowWidth=4096), tmp_path / "b.dcm"))).all()


@pytest.mark.parametrize("planar", [0, 1])
def test_colour(tmp_path, planar):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    kept = pixels.transpose(2, 0, 1) if planar else pixels
    path = save(build(pixels, bits=8, photometric="RGB", PlanarConfiguration=planar, PixelData=kept.tobytes()), tmp_path / "a.dcm")
    assert (decode_image(path, mode="rgb").permute(1, 2, 0).numpy() == pixels).all() and read_header(path) == Header(8, 6, "rgb")


def test_colour_of_sixteen_bits(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (6, 8, 3), dtype=np.uint16)
    path = save(build(pixels, photometric="RGB"), tmp_path / "a.dcm")
    assert (decode_image(path, mode="rgb").permute(1, 2, 0).numpy() == pixels // 256).all()


def test_luminance_and_chrominance(tmp_path):
    # ITU-T T.871: red and green.
    pixels = np.array([[[76, 85, 255], [150, 44, 21]]] * 2, np.uint8)
    path = save(build(pixels, bits=8, photometric="YBR_FULL"), tmp_path / "a.dcm")
    found = decode_image(path, mode="rgb").permute(1, 2, 0).numpy().astype(int)
    assert np.abs(found - [[[254, 0, 0], [0, 255, 1]]] * 2).max() <= 2


@pytest.mark.parametrize("bits", [8, 16])
def test_palette_colour(tmp_path, bits):
    stored = (ramp(0, 3) % 4).astype(np.uint8)
    colours = np.array([[250, 0, 10], [0, 200, 0], [7, 8, 255], [90, 91, 92]])
    kind = np.dtype(np.uint8 if bits == 8 else "<u2")
    dataset = build(stored, bits=8, photometric="PALETTE COLOR")
    for channel, name in enumerate(("Red", "Green", "Blue")):
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [4, 0, bits])
        setattr(dataset, f"{name}PaletteColorLookupTableData", (colours[:, channel] * (1 if bits == 8 else 256)).astype(kind).tobytes())
    path = save(dataset, tmp_path / "a.dcm")
    assert (decode_image(path, mode="rgb").permute(1, 2, 0).numpy() == colours[stored]).all() and read_header(path).mode == "rgb"


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_uncompressed_syntaxes(tmp_path, syntax):
    stored = ramp(0, 4000)
    dataset = build(stored, syntax=syntax, WindowCenter=2000, WindowWidth=4000)
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = stored.astype(">u2").tobytes()
    path = save(dataset, tmp_path / "a.dcm")
    assert np.abs(grey(path) - shown(stored, lambda x: standard(x, 2000, 4000, "LINEAR"))).max() <= 0.51


@pytest.mark.parametrize("name", ["a.dcm", "a.IMA"])
@pytest.mark.parametrize("implicit", [True, False])
def test_without_a_preamble(tmp_path, implicit, name):
    """Files from before part 10 of the standard: elements from the first byte on, and no word on how they are written."""
    dataset = build(ramp(0, 4000))
    bare = Dataset()
    bare.update(dataset)
    path = tmp_path / name
    bare.save_as(path, implicit_vr=implicit, little_endian=True)
    assert b"DICM" not in path.read_bytes()
    assert np.abs(grey(path) - shown(ramp(0, 4000), lambda x: x / 4000 * 255)).max() <= 0.51


@pytest.mark.parametrize("name", ["IM000001", "1.2.840.113619.2", "image.dicom", "IMAGE.DCM", "a.IMA", "a.img", "a.png", "none"])
def test_names(tmp_path, name):
    assert grey(save(build(ramp(0, 4000)), tmp_path / name)).shape == (12, 20)
    assert (grey(io.BytesIO((tmp_path / name).read_bytes())) == grey(tmp_path / name)).all()


def test_run_lengths(tmp_path):
    dataset = build(ramp(0, 4000))
    dataset.compress(RLELossless)
    assert (grey(save(dataset, tmp_path / "a.dcm")) == grey(save(build(ramp(0, 4000)), tmp_path / "b.dcm"))).all()


def test_jpeg_2000_and_jpeg(tmp_path):
    stored = ramp(0, 60_000)
    buffer = io.BytesIO()
    Image.fromarray(stored).save(buffer, "JPEG2000", irreversible=False, no_jp2=True)
    dataset = build(stored, syntax=JPEG2000Lossless, PixelData=encapsulate([buffer.getvalue()]))
    dataset["PixelData"].is_undefined_length = True
    assert (grey(save(dataset, tmp_path / "a.dcm")) == grey(save(build(stored), tmp_path / "b.dcm"))).all()
    one = ramp(0, 255, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(one).save(buffer, "JPEG", quality=95)
    dataset = build(one, bits=8, syntax=JPEGBaseline8Bit, PixelData=encapsulate([buffer.getvalue()]), WindowCenter=128, WindowWidth=256)
    dataset["PixelData"].is_undefined_length = True
    assert np.abs(grey(save(dataset, tmp_path / "c.dcm")) - one).max() <= 4


def test_jpeg_ls(tmp_path):
    """Encoded by GDCM, which decodes it too."""
    gdcm = pytest.importorskip("gdcm")
    path = save(build(ramp(0, 4000)), tmp_path / "a.dcm")
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLSLossless))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(tmp_path / "b.dcm"))
    assert writer.Write()
    assert pydicom.dcmread(tmp_path / "b.dcm").file_meta.TransferSyntaxUID == JPEGLSLossless
    assert (grey(tmp_path / "b.dcm") == grey(path)).all()


def undefined(dataset: FileDataset) -> FileDataset:
    dataset.PixelData = encapsulate([b"\0\0\1\xb3" + bytes(60)])
    dataset["PixelData"].is_undefined_length = True
    return dataset


def short_table() -> Dataset:
    table = Dataset()
    table.LUTDescriptor = [10, 0, 16]
    table.add_new("LUTData", "US", [1, 2, 3])
    return table


REFUSED = {
    "frames": (lambda: build(ramp(0, 9), NumberOfFrames=3), "3 frames: one image a file"),
    "high bit": (lambda: build(ramp(0, 9), bits=12, HighBit=15), "HighBit.*write the file anew with HighBit 11"),
    "short table": (lambda: build(ramp(0, 9), VOILUTSequence=Sequence([short_table()])), "3 entries, and 10 are announced"),
    "jpeg of 12 bits": (lambda: undefined(build(ramp(0, 9), bits=12, syntax=JPEGExtended12Bit)), "JPEG Extended.*store it uncompressed"),
    "no pixels": (lambda: build(ramp(0, 9), PixelData=None), "without pixels"),
    "no image": (lambda: build(ramp(0, 9), PixelData=None, Rows=None, Columns=None), "without an image"),
    "video": (lambda: undefined(build(ramp(0, 9), syntax=MPEG2MPML)), "MPEG2 Main Profile"),
    "broken jpeg": (lambda: undefined(build(ramp(0, 9), syntax=JPEG2000Lossless)), "compressed as JPEG 2000 Image Compression"),
    "unknown syntax": (lambda: undefined(build(ramp(0, 9), syntax=UID("1.2.3.4.5"))), "1.2.3.4.5"),
    "deflated": (lambda: build(ramp(0, 9), syntax=DeflatedExplicitVRLittleEndian), "deflated"),
    "too short": (lambda: build(ramp(0, 9), Rows=1000, Columns=1000), "bytes of pixel data is less than expected"),
    "bomb": (lambda: build(ramp(0, 9), Rows=65535, Columns=65535), "megapixels"),
    "strip": (lambda: build(ramp(0, 9), Rows=65535, Columns=2), "100 times"),
    "nothing": (lambda: build(ramp(0, 9), Rows=0), "0"),
    "window": (lambda: build(ramp(0, 9), WindowCenter=5, WindowWidth=0), "its window is 0 wide.*data. window"),
    "function": (lambda: build(ramp(0, 9), WindowCenter=5, WindowWidth=9, VOILUTFunction="CUBIC"), "CUBIC"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path, name):
    make, words = REFUSED[name]
    path = save(make(), tmp_path / "a.dcm")
    started = time.process_time()
    with pytest.raises(UnreadableImage, match=words) as raised:
        decode_image(path, mode="grey")
    assert time.process_time() - started < 2 and NAME not in str(raised.value)
    if name in ("bomb", "strip", "frames", "no image", "deflated"):
        with pytest.raises(UnreadableImage, match=words):
            read_header(path)


def test_other_files_of_that_name(tmp_path):
    for content in (b"", b"text", b"\x89PNG\r\n\x1a\n" + bytes(300), bytes(128) + b"DICM", bytes(128) + b"DICM" + b"\xff" * 500):
        (tmp_path / "a.dcm").write_bytes(content)
        for read in (read_header, grey):
            with pytest.raises(UnreadableImage):
                read(tmp_path / "a.dcm")


def test_hostile_bytes(tmp_path):
    random = np.random.default_rng(0)
    good = save(build(ramp(0, 4000), WindowCenter=2000, WindowWidth=4000), tmp_path / "good.dcm").read_bytes()
    path = tmp_path / "a.dcm"
    outcomes = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for _ in range(200):
            broken = bytearray(good)
            for _ in range(random.integers(1, 6)):
                broken[random.integers(128, len(good) - 480)] = random.integers(256)
            path.write_bytes(broken)
            try:
                read_header(path)
                outcomes.append(decode_image(path, mode="rgb", size=(8, 8)).shape == (3, 8, 8))
            except UnreadableImage:
                outcomes.append(False)
    assert not warned and any(outcomes) and not all(outcomes)


def test_nobodys_name_is_read(tmp_path, monkeypatch):
    dataset = build(ramp(0, 4000), WindowCenter=2000, WindowWidth=4000)
    path = save(dataset, tmp_path / "a.dcm")
    assert NAME.encode() in path.read_bytes()
    opened = []
    read = dicom._read
    monkeypatch.setattr(dicom, "_read", lambda *arguments, **options: opened.append(read(*arguments, **options)) or opened[-1])
    with_name = decode_image(path, mode="grey")
    assert len(opened) == 2
    for header in opened:
        # The group tells: 0028 is the image, 7FE0 its pixels, and what is in group 0008 or 0010 is about people and places.
        assert {element.tag.group for element in header} <= {0x0028, 0x7FE0} and "unmistakable" not in str(header).lower()
    for name in ("PatientName", "PatientID", "PatientBirthDate", "InstitutionName", "ImageComments"):
        delattr(dataset, name)
    assert (decode_image(save(dataset, tmp_path / "b.dcm"), mode="grey") == with_name).all()


def test_no_warning_reaches_the_user(tmp_path):
    """pydicom warns of this value when it is read by itself."""
    dataset = build(ramp(0, 4000))
    path = save(dataset, tmp_path / "a.dcm")
    padded = path.read_bytes()
    # Two bytes more than the pixels need.
    at = padded.rindex(b"\xe0\x7f\x10\x00OW") + 8
    path.write_bytes(padded[:at] + (int.from_bytes(padded[at : at + 4], "little") + 20).to_bytes(4, "little") + padded[at + 4 :] + bytes(20))
    with pytest.warns(UserWarning):
        _ = pydicom.dcmread(path).pixel_array
    expected = shown(ramp(0, 4000), lambda x: x / 4000 * 255)
    assert np.abs(grey(path) - expected).max() <= 0.51, "as errors they are errors of nobody"
    code = f"from pathlib import Path; from rightreasons.data.decode import *; p = Path({str(path)!r}); read_header(p); decode_image(p, mode='rgb')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_pydicom(tmp_path, monkeypatch):
    path = save(build(ramp(0, 4000)), tmp_path / "a.dcm")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    for read in (read_header, grey):
        with pytest.raises(MissingExtra, match=r"rightreasons\[dicom\]"):
            read(path)
