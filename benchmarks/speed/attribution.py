"""DeepLIFT SHAP of four images against five baselines, beside Captum 0.9.0 or Integrated Gradients, and beside a floor.

The floor is what no method with one multiplier for each pair can do without: one forward pass for each image and baseline, and for each pair of them
the gradient towards the image, by plain autograd. Captum's DeepLiftShap (``pip install captum``) refuses a module that is called twice, so that each
call of a ReLU gets a module of its own; it gives none of its rules to ReLU6. Integrated Gradients are the product's own, for the first image alone,
with 32 points (their error is printed beside ours), and ``rival_s`` is for all images in proportion.
``error`` is the sum over images of |heatmap's sum - difference of the logits|, as a share of the sum of those differences. ``agrees``: our heatmaps
add up to 1e-3, and are the rival's to 1e-3 of the largest effect where the rival's add up too.
Weights are random, statistics those of such images, and the queries of the transformer four times as large, since untrained attention is flat.

    python benchmarks/speed/attribution.py [--cases resnet50 efficientnet-lite0 vit-small] [--rounds 3] [--no-rival] --json
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.speed.turns import command_line, in_turns, line, show

from rightreasons.explain import attribute
from rightreasons.explain.attribute import attribute_images

IMAGES, BASELINES = 4, 5
# Points of Integrated Gradients between a baseline and an image.
POINTS = 32
EXACT = 1e-3


class Case(NamedTuple):
    build: Callable[[], nn.Module]
    side: int
    rival: str


def resnet50() -> nn.Module:
    from torchvision.models import resnet50

    return resnet50(num_classes=10)


def efficientnet_lite0() -> nn.Module:
    import timm

    return timm.create_model("efficientnet_lite0", num_classes=10)


def vit_small() -> nn.Module:
    import timm

    model = timm.create_model("vit_small_patch16_224", num_classes=10)
    for name, weight in model.named_parameters():
        if name.endswith("qkv.weight"):
            nn.init.orthogonal_(weight)
            weight.data[: len(weight) // 3] *= 4
        elif name.endswith(("fc1.weight", "fc2.weight", "proj.weight", "head.weight")) and weight.ndim == 2:
            nn.init.xavier_normal_(weight)
    return model


CASES = {
    "resnet50": Case(resnet50, 224, "captum"),
    "efficientnet-lite0": Case(efficientnet_lite0, 128, "captum"),
    "vit-small": Case(vit_small, 224, "integrated-gradients"),
}


def draw(count: int, side: int, seed: int) -> Tensor:
    """Smooth colours with some grain."""
    generator = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(torch.rand(count, 3, 8, 8, generator=generator), (side, side), mode="bicubic")
    return (coarse + 0.1 * torch.randn(count, 3, side, side, generator=generator)).clamp(0, 1)


def prepare(case: Case) -> nn.Module:
    """The network with statistics of such images, frozen."""
    torch.manual_seed(0)
    model = case.build()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        model.train(bool(norms))(draw(8, case.side, 3))
    return model.eval().requires_grad_(False)


def floor(model: nn.Module, images: Tensor, baselines: Tensor) -> None:
    with torch.no_grad():
        model(baselines)
    leaf = images.clone().requires_grad_()
    logits = model(leaf)
    score = logits.gather(1, logits.argmax(1, keepdim=True)).sum()
    for number in range(len(baselines)):
        torch.autograd.grad(score, leaf, retain_graph=number + 1 < len(baselines))


def taken_apart(model: nn.Module) -> nn.Module:
    """A copy with a module of its own for every call of an activation or a pooling."""
    traced = torch.fx.symbolic_trace(copy.deepcopy(model))
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and not list(traced.get_submodule(node.target).parameters()):
            name = f"{node.target}_{node.name}_own"
            module = copy.deepcopy(traced.get_submodule(node.target))
            if hasattr(module, "inplace"):
                module.__dict__["inplace"] = False
            traced.add_submodule(name, module)
            node.target = name
    traced.recompile()
    return traced


def captum(model: nn.Module, images: Tensor, baselines: Tensor, targets: Tensor) -> Callable[[], Tensor] | None:
    try:
        from captum.attr import DeepLiftShap
    except ImportError:
        return None
    explainer = DeepLiftShap(taken_apart(model))
    return lambda: explainer.attribute(images, baselines, target=targets).sum(1).detach()


def error(heatmaps: Tensor, model: nn.Module, images: Tensor, baselines: Tensor, targets: Tensor) -> float:
    with torch.no_grad():
        expected = model(images).gather(1, targets[:, None])[:, 0] - model(baselines)[:, targets].mean(0)
    return float((heatmaps.sum((1, 2)) - expected).abs().sum() / expected.abs().sum())


def measure(name: str, rounds: int, with_rival: bool) -> dict[str, object]:
    case = CASES[name]
    model, images, baselines = prepare(case), draw(IMAGES, case.side, 1), draw(BASELINES, case.side, 2)
    targets = model(images).argmax(1)
    attribute.STEPS = POINTS
    works: dict[str, Callable[[], object]] = {
        "ours": lambda: attribute_images(model, images, baselines).heatmaps,
        "floor": lambda: floor(model, images, baselines),
    }
    integrated, shown = case.rival == "integrated-gradients", images[:1] if case.rival == "integrated-gradients" else images
    rival = None
    if with_rival and integrated:
        rival = lambda: attribute_images(model, shown, baselines, method="integrated-gradients").heatmaps  # noqa: E731
    elif with_rival:
        rival = captum(model, images, baselines, targets)
    if rival is not None:
        works["rival"] = rival
    turns = in_turns(works, rounds)
    ours = turns["ours"].result
    assert isinstance(ours, Tensor)
    ours_error, rival_error, agrees = error(ours, model, images, baselines, targets), None, True
    if rival is not None:
        theirs = turns["rival"].result
        assert isinstance(theirs, Tensor)
        turns["rival"].seconds = [seconds * IMAGES / len(shown) for seconds in turns["rival"].seconds]
        rival_error = error(theirs, model, shown, baselines, targets[: len(shown)])
        agrees = integrated or rival_error > EXACT or bool((ours - theirs).abs().max() < EXACT * ours.abs().max())
    words = f"Integrated Gradients, {POINTS} points" if integrated else "Captum DeepLiftShap, ReLUs taken apart"
    return line(
        "attribute", f"{name} at {case.side}, {IMAGES} images x {BASELINES} baselines", turns, rival=words, agrees=ours_error < EXACT and agrees,
        ours_error=ours_error, rival_error=rival_error,
    )  # fmt: skip


def main() -> None:
    parser = command_line(__doc__, CASES)
    parser.add_argument("--no-rival", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for name in options.cases:
        show(measure(name, options.rounds, not options.no_rival), options.json)


if __name__ == "__main__":
    main()
