"""Draws a folder of class folders for folder.toml: metal parts, some scratched, most of those with a paper label.

The label is the shortcut: it is on 95 % of the scratched parts and 5 % of the sound ones, and on half of either in the test split.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

COUNTS = {"train": 300, "validation": 60, "test": 100}
LABELLED = {"train": (0.95, 0.05), "validation": (0.95, 0.05), "test": (0.5, 0.5)}


def draw_part(random: np.random.Generator, *, scratched: bool, labelled: bool) -> Image.Image:
    """One part, 64 pixels square."""
    grain = random.normal(0, 30, (64, 64)).cumsum(1)
    metal = 120 + 25 * random.random() + (grain - grain.mean(1, keepdims=True)) / 12
    part = Image.fromarray(np.clip(metal, 0, 255).astype(np.uint8)).convert("RGB").filter(ImageFilter.GaussianBlur(0.6))
    draw = ImageDraw.Draw(part)
    if scratched:
        x, y = random.integers(8, 40, 2)
        angle, length = random.uniform(0, np.pi), random.uniform(14, 26)
        shade = int(random.integers(165, 205))
        draw.line([(x, y), (x + length * np.cos(angle), y + length * np.sin(angle))], fill=(shade, shade, shade), width=1)
    if labelled:
        x, y = random.choice([2, 44]), random.choice([2, 50])
        draw.rectangle([x, y, x + 17, y + 11], fill=(236, 231, 214))
        for row in (3, 6, 9):
            draw.line([(x + 2, y + row), (x + random.integers(9, 15), y + row)], fill=(70, 70, 80))
    return part


def main() -> None:
    """Writes examples/images."""
    random = np.random.default_rng(0)
    root = Path(__file__).parent / "images"
    for split, count in COUNTS.items():
        for scratched, name in ((True, "scratch"), (False, "sound")):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                labelled = random.random() < LABELLED[split][0 if scratched else 1]
                draw_part(random, scratched=scratched, labelled=labelled).save(folder / f"{number:04d}.png")
    print(f"wrote {2 * sum(COUNTS.values())} images to {root}")


if __name__ == "__main__":
    main()
