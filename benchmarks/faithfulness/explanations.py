"""The explanations that are compared, each as a function of a network, images, baselines and the classes to explain. Rivals are imported lazily.

The product's own two; Captum 0.9.0's DeepLiftShap; zennit 0.5.1's LRP by its composite ``EpsilonPlus``; AttnLRP's rules for the small transformer;
Grad-CAM (Selvaraju et al. 2017) at the last map of features with places; and noise.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from benchmarks.faithfulness.apart import take_apart
from benchmarks.faithfulness.attnlrp import Gammas, relevance
from torch import Tensor, nn

from rightreasons.common.seeds import seeded
from rightreasons.explain.attribute import attribute_images
from rightreasons.networks.classifier import Classifier, frozen
from rightreasons.networks.small_vit import SmallViT

AT_ONCE = 8


class Asked(NamedTuple):
    """What is to be explained: (image, channel, height, width), the baselines likewise, and a class for each image."""

    model: Classifier
    images: Tensor
    baselines: Tensor
    targets: Tensor


def explain(name: str, asked: Asked) -> Tensor:
    """Heatmaps, (image, height, width), a few images at a time."""
    parts = zip(asked.images.split(AT_ONCE), asked.targets.split(AT_ONCE), strict=True)
    with frozen(asked.model):
        return torch.cat([EXPLANATIONS[name](Asked(asked.model, images, asked.baselines, targets)).detach() for images, targets in parts])


def _ours(asked: Asked, method) -> Tensor:
    return attribute_images(asked.model, asked.images, asked.baselines, asked.targets, method=method).heatmaps


def _captum(asked: Asked) -> Tensor:
    from captum.attr import DeepLiftShap

    network = asked.model.network if isinstance(asked.model.network, SmallViT) else take_apart(asked.model.network)
    images, baselines = (_network_input(asked.model, images) for images in (asked.images, asked.baselines))
    return DeepLiftShap(network).attribute(images, baselines, target=asked.targets).sum(1)


def _epsilon_plus(asked: Asked) -> Tensor:
    from zennit.composites import EpsilonPlus  # pyright: ignore[reportMissingImports] -- a rival
    from zennit.layer import Sum  # pyright: ignore[reportMissingImports]

    leaf = _network_input(asked.model, asked.images).requires_grad_()
    with EpsilonPlus().context(take_apart(asked.model.network, Sum)) as network, torch.enable_grad():
        logits = network(leaf)
        chosen = F.one_hot(asked.targets, logits.shape[1]) * logits.detach()
        return torch.autograd.grad(logits, leaf, chosen)[0].sum(1)


def _attnlrp(asked: Asked, gammas: Gammas) -> Tensor:
    assert isinstance(asked.model.network, SmallViT)
    with torch.enable_grad():
        return relevance(asked.model.network, _network_input(asked.model, asked.images), asked.targets, gammas).sum(1)


def _grad_cam(asked: Asked) -> Tensor:
    kept: list[Tensor] = []

    def keep(module: nn.Module, given: object, output: object) -> None:
        if isinstance(output, Tensor) and _has_places(output):
            kept.append(output)

    network = asked.model.network
    last = network.blocks[-1] if isinstance(network, SmallViT) else None
    watched = [last.norm1] if isinstance(last, nn.TransformerEncoderLayer) else list(network.modules())
    hooks = [module.register_forward_hook(keep) for module in watched]
    try:
        with torch.enable_grad():
            leaf = _network_input(asked.model, asked.images).requires_grad_()
            score = network(leaf).gather(1, asked.targets[:, None]).sum()
            gradient = torch.autograd.grad(score, kept[-1])[0]
    finally:
        for hook in hooks:
            hook.remove()
    maps, gradient = (_as_maps(values, leaf) for values in (kept[-1].detach(), gradient))
    cam = (gradient.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu()
    return F.interpolate(cam, leaf.shape[2:], mode="bilinear", align_corners=False)[:, 0]


def _has_places(output: Tensor) -> bool:
    return output.ndim == 3 or (output.ndim == 4 and min(output.shape[2:]) > 1)


def _as_maps(values: Tensor, images: Tensor) -> Tensor:
    """Maps as they are; tokens laid out on the image's grid, without the class token."""
    if values.ndim == 4:
        return values
    rows = round(((values.shape[1] - 1) * images.shape[2] / images.shape[3]) ** 0.5)
    return values[:, 1:].mT.unflatten(2, (rows, -1))


def _noise(asked: Asked) -> Tensor:
    """Other noise for each network and image."""
    with torch.no_grad():
        purpose = asked.model(asked.images).flatten().tolist()
    return torch.rand(asked.images[:, 0].shape, generator=seeded(0, "noise", *purpose))


def _network_input(model: Classifier, images: Tensor) -> Tensor:
    """The images as the classifier hands them to its network: normalised, with the channels that it expects."""
    seen: list[Tensor] = []
    hook = model.network.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        model(images)
    hook.remove()
    return seen[0].detach().clone()


EXPLANATIONS: dict[str, Callable[[Asked], Tensor]] = {
    "deeplift-shap": partial(_ours, method="deeplift-shap"),
    "integrated-gradients": partial(_ours, method="integrated-gradients"),
    "captum-deepliftshap": _captum,
    "lrp-epsilon-plus": _epsilon_plus,
    "attnlrp-epsilon": partial(_attnlrp, gammas=Gammas()),
    "attnlrp-gamma": partial(_attnlrp, gammas=Gammas(patches=0.25, linear=0.05)),
    "grad-cam": _grad_cam,
    "noise": _noise,
}
