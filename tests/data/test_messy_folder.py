"""A folder as people have them, through the command line: it finishes, and standard error says what was left out and why.

Here belongs a file that is odd in name, form or place and lies among good ones: one more entry in LEFT_OUT or READ, and in ``make_a_mess``. There is
one folder and one run for all of them. A mistake in a table of labels is a case of test_label_mistakes.py; input that stops a command one of
tests/cli/test_bad_input.py.
"""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np
import pytest
from PIL import Image

from tests.data.test_decode import png
from tests.support.helpers import draw, edit, run, write_scripted

LATIN = os.fsdecode(b"caf\xe9.png")
LEFT_OUT = {
    "train/bolt/truncated.jpg": "truncated",
    "train/bolt/strip.png": "50000x10 pixels: one side is more than 100 times the other",
    "train/nut/text.png": "not an image that can be read",
    "train/nut/empty.png": "not an image that can be read",
    "train/nut/bomb.png": "more than 134 megapixels: make it smaller",
    "train/nut/out.png": "a link out of the folder",
    "train/nut/elsewhere": "a link out of the folder",
}
READ = {
    "train/bolt/huge.png", "train/bolt/cmyk.jpg", "train/nut/deep.tif", "train/bolt/with space.png", "train/bolt/quotes\"'.png",
    "train/nut/猫 дом.png",
    "train/nut/new\nline.png", "train/nut/grey alpha.png",
    f"train/nut/{LATIN}",
}  # fmt: skip


def make_a_mess(images, outside) -> None:
    random = np.random.default_rng(5)
    bolt, nut = images / "train" / "bolt", images / "train" / "nut"
    one = lambda name: Image.fromarray(draw(random, bolt=name is bolt, tag=name is bolt))  # noqa: E731
    large = one(bolt).resize((400, 400))
    large.save(bolt / "whole.jpg")
    (bolt / "truncated.jpg").write_bytes((bolt / "whole.jpg").read_bytes()[:3000])
    (bolt / "whole.jpg").unlink()
    (bolt / "strip.png").write_bytes(png(50_000, 10, 8, 0, (b"\0" + bytes(50_000)) * 10))
    (bolt / "huge.png").write_bytes(png(10_000, 10_000, 8, 0, (b"\0" + b"\x60" * 10_000) * 10_000))
    one(bolt).convert("CMYK").save(bolt / "cmyk.jpg")
    one(bolt).save(bolt / "with space.png")
    one(bolt).save(bolt / "quotes\"'.png")
    (nut / "text.png").write_text("this is no picture")
    (nut / "empty.png").touch()
    (nut / "bomb.png").write_bytes(png(60_000, 60_000, 8, 0, bytes(1000)))
    Image.fromarray(np.array(one(nut).convert("L")).astype(np.uint16) * 257).save(nut / "deep.tif")
    one(nut).convert("LA").save(nut / "grey alpha.png")
    for name in ("猫 дом.png", "new\nline.png", LATIN):
        one(nut).save(nut / name)
    outside.mkdir()
    one(nut).save(outside / "secret.png")
    (nut / "out.png").symlink_to(outside / "secret.png")
    (nut / "elsewhere").symlink_to(outside)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    root = tmp_path_factory.mktemp("messy")
    config = write_scripted(root, splits=True)
    edit(config, 'path = "images"', 'path = "images"\nsize = 16\nmode = "rgb"')
    make_a_mess(root / "images", root / "outside")
    return root, config, run("find", config, "--out", root / "run", "--json")


def test_it_finishes(found):
    root, _, done = found
    metrics = json.loads(done.stdout)
    assert metrics["before"]["accuracy"] > 0.5 and (root / "run" / "report.html").exists()


def test_it_says_what_it_left_out_and_why(found):
    root, _, done = found
    told = dict(line.removeprefix("note: left out ").split(": ", 1) for line in done.stderr.splitlines() if line.startswith("note: left out"))
    assert told.keys() == LEFT_OUT.keys()
    assert all(why in told[name] for name, why in LEFT_OUT.items()), told
    assert str(root) not in "".join(told.values()) and "Warning" not in done.stderr
    assert json.loads(done.stdout)["skipped_images"] == len(LEFT_OUT)


def test_everything_else_is_read(found):
    root, *_ = found
    listed = [json.loads(line)["sha256"] for line in (root / "run" / "manifest.jsonl").read_text().splitlines()]
    plain = [path.relative_to(root / "images").as_posix() for path in (root / "images").rglob("[0-9][0-9].png")]
    names = [*plain, *READ, "train/bolt/truncated.jpg"]
    assert len(plain) == 80
    assert sorted(listed) == sorted(hashlib.sha256((root / "images" / name).read_bytes()).hexdigest() for name in names)


def test_no_name_is_in_the_run_folder(found):
    root, *_ = found
    for path in (root / "run").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(name.rpartition("/")[2].encode("utf-8", "surrogateescape") in content for name in [*LEFT_OUT, *READ] if "." in name), path


def test_a_second_find_and_score_say_the_same(found):
    root, config, first = found
    again = run("find", config, "--out", root / "run", "--json")
    assert json.loads(again.stdout)["before"] == json.loads(first.stdout)["before"]
    notes = lambda done: sorted(line for line in done.stderr.splitlines() if "left out" in line)  # noqa: E731
    assert notes(again) == notes(first) and notes(first)
