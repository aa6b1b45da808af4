"""Which classifiers DeepLIFT SHAP explains, and how exactly: torchvision's, two of every timm module, and Hugging Face's image classifiers.

Each has random weights, also where it would start with zeros, and BatchNorm statistics of random images, and runs in float64 at the smallest size
that it takes. Two images are explained against one baseline. ``error`` is the completeness error against the difference of the logits, ``missing``
the same against the sum of |effect|: where image and baseline hardly differ, only the second says anything.

    python benchmarks/coverage.py [--only torchvision|timm|huggingface] [--largest MILLIONS] [--names NAME ...] [--out FILE.json]
    python benchmarks/coverage.py --table  # what the file has, as Markdown: the tables of docs/networks.md
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rightreasons.errors import RightReasonsError
from rightreasons.explain.attribute import attribute_images

SIDES = (64, 96, 128, 192, 224, 240, 256, 288, 299, 384)
CLASSES = 5
LARGEST = 100  # million parameters, unless --largest says otherwise; in float64 a million takes 8 MB, and half as much more while it is built
# A small network where a Hugging Face configuration has these fields.
SMALL = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "d_latents": 64,
    "num_latents": 16,
    "num_self_attends_per_block": 2,
    "num_cross_attention_heads": 1,
}
# What AutoModelForImageClassification knows and what is no function of a picture alone.
NOT_OF_PICTURES = {
    "imagegpt": "reads numbers of colours, not pixels",
    "shieldgemma2": "a language model of 4,000 million parameters that is asked in words about a picture",
}


# Weights that all start with one number no larger than this are drawn anew.
SMALL_START = 0.1


class Network(NamedTuple):
    """A name, and a function that builds it for pictures of a side."""

    name: str
    build: Callable[[int], nn.Module]


class Answer(nn.Module):
    """The logits of a Hugging Face classifier; PP-LCNet's are under another name."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        given = self.network(**self.read(images))
        return given.logits if "logits" in given else given.last_hidden_state

    def read(self, images: Tensor) -> dict[str, Tensor]:
        """The network's arguments for these images."""
        return {"pixel_values": images}


class AnswerToPatches(Answer):
    """The same of SigLIP 2, whose image processor cuts a picture into patches, row by row, with the channels last in each."""

    def read(self, images: Tensor) -> dict[str, Tensor]:
        config: Any = self.network.config
        side = config.vision_config.patch_size
        patches = images.unfold(2, side, side).unfold(3, side, side)  # (image, channel, row, column, height, width)
        rows, columns = patches.shape[2:4]
        values = patches.permute(0, 2, 3, 4, 5, 1).reshape(len(images), rows * columns, -1)
        return {
            "pixel_values": values,
            "pixel_attention_mask": torch.ones(values.shape[:2], dtype=torch.long),
            "spatial_shapes": torch.tensor([[rows, columns]] * len(images)),
        }


def torchvision_networks() -> Iterator[Network]:
    """Every classifier of torchvision."""
    import torchvision

    for name in torchvision.models.list_models(module=torchvision.models):
        build = torchvision.models.get_model_builder(name)

        def make(side: int, build: Callable = build, name: str = name) -> nn.Module:
            extra = {"image_size": side} if name.startswith("vit_") else {"input_size": (side, side)} if name.startswith("maxvit") else {}
            extra |= {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            return build(weights=None, num_classes=CLASSES, **extra)

        yield Network(name, make)


def timm_networks(chosen: dict[str, list[str]]) -> Iterator[Network]:
    """The two classifiers with the fewest weights of every module of timm; ``chosen`` remembers them by module, as to count takes minutes."""
    import timm

    for module in timm.list_modules():
        if module not in chosen:
            chosen[module] = sorted(timm.list_models(module=module), key=_count_weights)[:2]
        for name in chosen[module]:

            def make(side: int, name: str = name) -> nn.Module:
                try:
                    return timm.create_model(name, num_classes=CLASSES, img_size=side)
                except TypeError:
                    return timm.create_model(name, num_classes=CLASSES)

            yield Network(name, make)


def _count_weights(name: str) -> float:
    """The number of weights of a timm model, which is built without memory for them; infinity if it cannot be built so."""
    import timm

    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in timm.create_model(name).parameters())
    except (RuntimeError, NotImplementedError, TypeError):
        return float("inf")


def huggingface_networks() -> Iterator[Network]:
    """Every kind of classifier that AutoModelForImageClassification knows, small where its configuration lets itself be made so."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING as MAPPING

    for config, kinds in MAPPING.items():
        # Of a family with several kinds of classifier, such as DeiT with its teacher, AutoModel cannot choose one for a new configuration.
        several: tuple[Any, ...] = kinds if isinstance(kinds, tuple) else (kinds,)
        for kind in several:
            name = f"{config.model_type}:{kind.__name__.partition('ForImageClassification')[2]}"
            yield Network(name.rstrip(":"), partial(_build_huggingface, config, kind))


def _build_huggingface(config: type, kind: Any, side: int) -> nn.Module:
    if config.model_type in NOT_OF_PICTURES:
        raise ValueError(NOT_OF_PICTURES[config.model_type])
    known = config()
    given = {key: value for key, value in SMALL.items() if isinstance(getattr(known, key, None), int)} | {"image_size": side}
    if hasattr(known, "vision_config"):
        given = {"vision_config": SMALL | {"image_size": side}}
    for attempt in (given, {"image_size": side}, {"image_size": [side, side]}, {}):
        try:
            network = kind(config(**attempt | {"num_labels": CLASSES}))
            answer = (AnswerToPatches if config.model_type == "siglip2" else Answer)(network)
            with torch.no_grad():  # some take a size that does not suit their other fields, and then fail
                answer.eval()(torch.zeros(1, 3, side, side))
            return answer
        except Exception as error:  # in whatever words a family refuses a size or a field
            failed = error
    raise failed


def try_network(network: Network, largest: int = LARGEST) -> dict[str, Any]:
    """One row of the table, unless the network has more than ``largest`` million parameters."""
    start, failed = time.perf_counter(), None
    for side in SIDES:
        torch.manual_seed(0)
        images = torch.rand(3, 3, side, side, dtype=torch.float64) * 2 - 1
        try:
            model = network.build(side)
            millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
            if millions > largest:
                return {"outcome": "left out", "reason": f"it has {millions:.0f} million parameters"}
            model = model.double()
            drawn = _fill_zeros(model)
            _calibrate(model, torch.rand(8, 3, side, side, dtype=torch.float64) * 2 - 1)
            with torch.no_grad():
                logits = model(images)
        except Exception as error:  # a size that does not suit, in whatever words the network says so
            failed = error
            continue
        targets = (logits[:2] - logits[2:]).abs().amin(0).argmax().repeat(2)
        row = {"side": side, "drawn": drawn}
        try:
            found = attribute_images(model, images[:2], images[2:], targets)
        except RightReasonsError as error:
            return row | {"outcome": "refused", "reason": str(error)}
        except Exception as error:  # a mistake of this package, which is not to end a run of hours
            return row | {"outcome": "refused", "reason": f"{type(error).__name__}: {error}"[:300]}
        expected = (logits[:2] - logits[2:]).gather(1, targets[:, None])[:, 0]
        missing = (found.heatmaps.sum((1, 2)) - expected).abs() / found.heatmaps.abs().sum((1, 2)).clamp_min(1e-300)
        error = {"error": float(found.completeness_error.max()), "missing": float(missing.max())}
        return row | {"outcome": "explained", **error, "seconds": round(time.perf_counter() - start, 1)}
    return {"outcome": "could not be run", "reason": f"{type(failed).__name__}: {failed}"[:300]}


@torch.no_grad()
def _fill_zeros(model: nn.Module) -> int:
    """Draws weights that start as zeros or nearly so, and tells how many: last layers, the norms of residual branches, layer scales.

    As they start, a part of the network does nothing, and its rules would be tried on nothing.
    """
    count = 0
    for name, weight in model.named_parameters():
        if "bias" in name.rpartition(".")[2] or weight.numel() == 0 or weight.abs().max() > SMALL_START or (weight != weight.flatten()[0]).any():
            continue
        count += 1
        if weight.squeeze().ndim > 1:
            weight.normal_(0, 0.02)
        else:
            weight.uniform_(0.2, 0.8)
    return count


@torch.no_grad()
def _calibrate(model: nn.Module, images: Tensor) -> None:
    """Gives BatchNorm the statistics of these images; the rest of the model is in eval mode, as some networks do other things in training."""
    model.eval()
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.momentum = None
            norm.train()
    model(images)
    model.eval()


def show_tables(known: dict[str, Any]) -> str:
    """The shares that are explained with the largest errors, each network with its error, and what is not explained, as Markdown."""
    lines = ["| set | explained | of | largest missing share of the effect | largest error | median error | left out | could not be run |"]
    lines.append("| --- " * 8 + "|")
    for kind in SETS:
        groups = {outcome: [row for row in known[kind].values() if row["outcome"] == outcome] for outcome in OUTCOMES}
        explained, refused, *others = groups.values()
        errors = sorted(row["error"] for row in explained)
        missing = max(row["missing"] for row in explained)
        counts = f"{len(explained)} | {len(explained) + len(refused)} | {missing:.0e} | {errors[-1]:.0e} | {errors[len(errors) // 2]:.0e}"
        lines.append(f"| {kind} | {counts} | {len(others[0])} | {len(others[1])} |")
    for kind in SETS:
        lines += ["", f"## {kind}", "", "| network | side | missing | error |", "| --- | --- | --- | --- |"]
        rows = {name: row for name, row in known[kind].items() if row["outcome"] == "explained"}
        lines += [f"| {name} | {row['side']} | {row['missing']:.0e} | {row['error']:.0e} |" for name, row in rows.items()]
    return "\n".join(lines)


OUTCOMES = ("explained", "refused", "left out", "could not be run")
SETS: dict[str, Callable[[], Iterator[Network]]] = {
    "torchvision": torchvision_networks,
    "timm": partial(timm_networks, {}),
    "huggingface": huggingface_networks,
}


def main() -> None:
    """Tries every network that is not in the file yet, and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SETS, help="one of the sets")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/coverage.json"))
    parser.add_argument("--table", action="store_true", help="print what the file has, and try nothing")
    parser.add_argument("--largest", type=int, default=LARGEST, help="million parameters; networks that were left out by a lower limit are tried")
    parser.add_argument("--names", nargs="+", help="these alone, again if they are in the file")
    options = parser.parse_args()
    if options.table:
        print(show_tables(json.loads(options.out.read_text(encoding="utf-8"))))
        return
    warnings.filterwarnings("ignore")
    known = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "timm", "transformers")}
    if known.get("versions", versions)["timm"] != versions["timm"]:
        known["chosen"] = {}
    known["versions"] = versions
    sets = SETS | {"timm": partial(timm_networks, known.setdefault("chosen", {}))}
    for kind in [options.only] if options.only else SETS:
        rows = known.setdefault(kind, {})
        for network in sets[kind]():
            left_out = network.name not in rows or (rows[network.name]["outcome"] == "left out" and options.largest > LARGEST)
            if network.name in options.names if options.names else left_out:
                rows[network.name] = try_network(network, options.largest)
                print(kind, network.name, rows[network.name], flush=True)
                options.out.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        tried = [row for row in rows.values() if row["outcome"] in ("explained", "refused")]
        explained = [row for row in tried if row["outcome"] == "explained"]
        print(
            f"{kind}: {len(explained)} of {len(tried)} explained; largest share of the effect that is missing "
            f"{max((row['missing'] for row in explained), default=0):.1e}"
        )


if __name__ == "__main__":
    main()
