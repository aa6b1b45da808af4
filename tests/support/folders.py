"""Small folders in the forms in which people have their images, written from the published descriptions of those forms.

Each holds the same pictures: bolts and nuts with a bright tag in a corner of nearly all bolts in training and validation, of half of either in the
test. A function gives what it wrote, image by image.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rightreasons.config import DataConfig
from rightreasons.data import open_data
from rightreasons.data.task import Task
from tests.support.helpers import SIDE, TAG, draw

COUNTS = {"train": 40, "validation": 12, "test": 16}
SHORT = {"train": "train", "validation": "val", "test": "test"}
CODES = {"train": 0, "validation": 1, "test": 2}


@dataclass(frozen=True)
class Picture:
    """One image: its split, whether it shows a bolt, whether it has a tag, its number within the split, and its pixels."""

    split: str
    bolt: bool
    tag: bool
    number: int
    pixels: np.ndarray

    @property
    def image(self) -> Image.Image:
        return Image.fromarray(self.pixels)

    @property
    def mask(self) -> Image.Image:
        pixels = np.zeros((SIDE, SIDE), np.uint8)
        pixels[TAG] = 255 if self.tag else 0
        return Image.fromarray(pixels)

    def encoded(self, kind: str = "PNG") -> bytes:
        buffer = io.BytesIO()
        self.image.save(buffer, kind)
        return buffer.getvalue()


def pictures(counts: dict[str, int] = COUNTS, seed: int = 3) -> list[Picture]:
    random = np.random.default_rng(seed)
    made = []
    for split, count in counts.items():
        for number in range(count):
            bolt = number % 2 == 0
            tag = number // 2 % 2 == 0 if split == "test" else (number // 2 % 10 != 0) == bolt
            made.append(Picture(split, bolt, tag, number, draw(random, bolt=bolt, tag=tag)))
    return made


def write_rows(path: Path, header: str, rows: list[list[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header.split(","), *rows])


def save(image: Image.Image, path: Path, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def write_class_folders(root: Path, *, names: tuple[str, str] = ("bolt", "nut")) -> list[Picture]:
    """``root/train/bolt/0000.png`` beside validation and test."""
    made = pictures()
    for picture in made:
        save(picture.image, root / picture.split / names[0 if picture.bolt else 1] / f"{picture.number:04d}.png")
    return made


def write_spuco(root: Path, *, names: tuple[str, ...] = ("small_dogs", "big_dogs"), places: tuple[str, ...] = ("indoor", "outdoor")) -> list[Picture]:
    """``root/train/CLASS/SPURIOUS/*.jpg``, as SpuCoImageFolder of SpuCo 2.0.3 expects it."""
    made = pictures()
    for picture in made:
        folder = root / SHORT[picture.split] / names[not picture.bolt] / places[not picture.tag]
        save(picture.image, folder / f"{picture.number}.png")
    return made


def write_waterbirds(root: Path) -> list[Picture]:
    """As group DRO describes it: metadata.csv, and a folder for each species."""
    made, rows = pictures(), []
    for number, picture in enumerate(made, start=1):
        species = "001.Black_footed_Albatross" if picture.bolt else "016.Painted_Bunting"
        name = f"{species}/{species[4:]}_{number:04d}_{number * 7}.jpg"
        save(picture.image, root / name, quality=98, subsampling=0)
        place = "/o/ocean/00000001.jpg" if picture.tag else "/b/bamboo_forest/00000002.jpg"
        rows.append([number, name, int(picture.bolt), CODES[picture.split], int(picture.tag), place])
    write_rows(root / "metadata.csv", "img_id,img_filename,y,split,place,place_filename", rows)
    return made


def write_subpopbench(root: Path, *, masks: bool = True) -> list[Picture]:
    """The canonical table: id, filename, split, y, a; and mask."""
    made, rows = pictures(), []
    for number, picture in enumerate(made):
        name = f"images/{number:05d}.png"
        save(picture.image, root / name)
        mask = f"masks/{number:05d}.png" if masks and picture.tag else ""
        if mask:
            save(picture.mask, root / mask)
        rows.append([number, name, CODES[picture.split], int(picture.bolt), int(picture.tag), *([mask] if masks else [])])
    write_rows(root / "metadata.csv", "id,filename,split,y,a" + (",mask" if masks else ""), rows)
    return made


def write_celeba(root: Path, *, kaggle: bool = False) -> list[Picture]:
    """The official text lists, or Kaggle's CSV with its folder in a folder."""
    made = pictures()
    names = ["5_o_Clock_Shadow", "Blond_Hair", "Male", "Young"]
    lines, parts, people = [], [], []
    for number, picture in enumerate(made, start=1):
        name = f"{number:06d}.jpg"
        save(picture.image, root / "img_align_celeba" / ("img_align_celeba" if kaggle else "") / name, quality=98, subsampling=0)
        lines.append([name, -1, 1 if picture.bolt else -1, 1 if picture.tag else -1, 1])
        parts.append([name, CODES[picture.split]])
        people.append([name, number // 3 + 1000 * CODES[picture.split]])
    if kaggle:
        write_rows(root / "list_attr_celeba.csv", ",".join(["image_id", *names]), lines)
        write_rows(root / "list_eval_partition.csv", "image_id,partition", parts)
    else:
        # The official file has two spaces where a minus is missing.
        body = "\n".join(" ".join([line[0], *(f"{value:2d}" for value in line[1:])]) for line in lines)
        (root / "list_attr_celeba.txt").write_text(f"{len(lines)}\n{' '.join(names)} \n{body}\n")
        (root / "list_eval_partition.txt").write_text("".join(f"{name} {value}\n" for name, value in parts))
        (root / "identity_CelebA.txt").write_text("".join(f"{name} {value}\n" for name, value in people))
    return made


def write_table(root: Path) -> list[Picture]:
    """A clinic's export in German: semicolons, Windows line ends, a byte-order mark, names without suffix; a few rows are of no use."""
    made = pictures()
    lines = ["Fall;Datei;Befund;Notiz"]
    for number, picture in enumerate(made):
        save(picture.image, root / f"{number // 20}" / f"IMG {number:04d}.jpg", quality=98, subsampling=0)
        lines.append(f'F{number // 2};IMG {number:04d};{"Pneumonie" if picture.bolt else "o.B."};"nüchtern; ""gut"""')
    lines += ["F900;IMG 9999;o.B.;fehlt", "F901;IMG 0001;;", ""]
    lines[5] = lines[5].replace("o.B.", "unklar").replace("Pneumonie", "unklar")
    (root / "labels.csv").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    return made


def write_dicom(root: Path) -> list[Picture]:
    """12-bit MONOCHROME2 and MONOCHROME1 with windows, in folders of studies, and a table that names them."""
    import pydicom
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    made, rows = pictures(), []
    for number, picture in enumerate(made):
        grey = np.asarray(picture.image.convert("L"), np.int32) * 16
        inverted = number % 3 == 0
        file = pydicom.FileDataset("", {}, file_meta=pydicom.dataset.FileMetaDataset(), preamble=b"\0" * 128)
        file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = CTImageStorage
        file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = f"1.2.826.0.1.{number + 1}"
        file.PatientName, file.PatientID = "Mustermann^Erika", f"P{number // 2}"
        file.Rows = file.Columns = SIDE
        file.SamplesPerPixel, file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 1, 16, 12, 11, 0
        file.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
        file.RescaleSlope, file.RescaleIntercept = 1, -1024
        file.WindowCenter, file.WindowWidth = 1024, 4096
        file.PixelData = (4095 - grey if inverted else grey).astype("<u2").tobytes()
        path = root / f"study{number // 10}" / f"{number:04d}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        file.save_as(path, enforce_file_format=True)
        rows.append([f"{number:04d}", "effusion" if picture.bolt else "normal", f"P{number // 2}"])
    write_rows(root / "labels.csv", "file,label,patient_id", rows)
    return made


def write_parquet(root: Path) -> list[Picture]:
    """As the hub keeps it: data/train-00000-of-00002.parquet ..., bytes and path in a record, class names in the schema's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = pictures()
    names = ["scratch", "sound"]
    info = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}}}
    for split in COUNTS:
        part = [picture for picture in made if picture.split == split]
        half = len(part) // 2
        for shard, some in enumerate((part[:half], part[half:])):
            images = [{"bytes": picture.encoded(), "path": f"{picture.number}.png"} for picture in some]
            table = pa.table({"image": images, "label": [int(not picture.bolt) for picture in some]})
            table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
            (root / "data").mkdir(parents=True, exist_ok=True)
            pq.write_table(table, root / "data" / f"{split}-{shard:05d}-of-00002.parquet", row_group_size=7)
    return made


def write_huggingface(root: Path) -> list[Picture]:
    """``DatasetDict.save_to_disk``."""
    import datasets

    made = pictures()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["scratch", "sound"])})
    datasets.disable_progress_bars()
    datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict(
                {
                    "image": [{"bytes": picture.encoded(), "path": None} for picture in made if picture.split == split],
                    "label": [int(not picture.bolt) for picture in made if picture.split == split],
                },
                features=features,
            )
            for split in COUNTS
        }
    ).save_to_disk(str(root))
    return made


def write_isic(root: Path, *, masks: bool = True) -> list[Picture]:
    """The 2019 challenge: one-hot diagnoses, metadata with lesions, photographs; a list of artifacts, and masks of the plasters."""
    made = pictures({"train": 80})
    diagnoses = ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK"]
    truth, metadata, artifacts = [], [], {"band_aid": [], "ruler": []}
    for number, picture in enumerate(made):
        name = f"ISIC_{number:07d}"
        save(picture.image, root / "ISIC_2019_Training_Input" / f"{name}.jpg", quality=98, subsampling=0)
        save(Image.new("L", (SIDE, SIDE), 255), root / "ISIC_2019_Segmentation" / f"{name}_segmentation.png")
        kind = ("NV", "BKL", "NV", "DF", "VASC")[number // 2 % 5] if picture.bolt else ("MEL", "BCC", "SCC", "AK")[number // 2 % 4]
        truth.append([name, *(f"{float(kind == diagnosis)}" for diagnosis in diagnoses)])
        metadata.append([name, 50, "anterior torso", f"BCN_{number // 4:07d}", "female"])
        if picture.tag:
            artifacts["band_aid"].append(name)
            if masks:
                save(picture.mask, root / "masks" / "band_aid" / f"{name}.png")
        if number % 5 == 0:
            artifacts["ruler"].append(name)
    write_rows(root / "ISIC_2019_Training_GroundTruth.csv", ",".join(["image", *diagnoses]), truth)
    write_rows(root / "ISIC_2019_Training_Metadata.csv", "image,age_approx,anatom_site_general,lesion_id,sex", metadata)
    (root / "artifacts.json").write_text(json.dumps(artifacts))
    return made


def write_knees(root: Path) -> list[Picture]:
    """Chen's folders: train, val, test and auto_test, each with the grades 0 to 4."""
    made = pictures()
    for picture in made:
        grade = (2, 3, 4)[picture.number // 2 % 3] if picture.bolt else (0, 0, 1)[picture.number // 2 % 3]
        side = "L" if picture.number % 3 else "R"
        save(picture.image.convert("L"), root / SHORT[picture.split] / str(grade) / f"{9000000 + picture.number}{side}.png")
    save(made[0].image.convert("L"), root / "auto_test" / "0" / "9999999L.png")
    return made


def noise(*paths: Path, low: int = 0) -> None:
    """Pictures of many values, each another: no mask looks so."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(list(str(path).encode()))
        Image.fromarray(random.integers(low, low + 100, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)


def spot(*paths: Path) -> None:
    """Masks: a white field on black."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((SIDE, SIDE), np.uint8)
        pixels[TAG] = 255
        Image.fromarray(pixels).save(path)


def read(root: Path, **options: object) -> Task:
    """The task that a folder is read as."""
    return open_data(DataConfig.model_validate({"path": str(root), "size": SIDE, **options}), root=root, seed=0)


def names_of(task: Task) -> dict[str, list[str]]:
    """The files of each split."""
    return {split: [entry.name for entry in images.entries] for split, images in task.splits.items()}


def total(task: Task) -> int:
    return sum(len(images) for images in task.splits.values())
