"""Which network a checkpoint belongs to, by trying common ones of torchvision without their memory."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from rightreasons.errors import ModelError
from rightreasons.networks.checkpoints import load_weights, read_checkpoint

# By a part of their tensors' names, so that few are built; what people fine-tune most often comes first. The resnets of timm have the same names.
COMMON = {
    "layer1.": ("resnet50", "resnet18", "resnet34", "resnet101", "resnet152"),
    "denseblock1.": ("densenet121", "densenet169"),
    "encoder.": ("vit_b_16", "vit_b_32"),
    "Mixed_5b.": ("inception_v3",),
    "inception3a.": ("googlenet",),
    "stage2.": ("shufflenet_v2_x1_0",),
    "features.": (
        *("efficientnet_b0", "mobilenet_v3_large", "mobilenet_v3_small", "mobilenet_v2", "convnext_tiny", "swin_t", "vgg16", "efficientnet_v2_s"),
        *("efficientnet_b1", "efficientnet_b3", "convnext_small", "vgg11", "vgg16_bn", "alexnet", "squeezenet1_1"),
    ),
}


def guess_source(path: Path, classes: int) -> str | None:
    """The ``[model] source`` into which a checkpoint fits tensor by tensor, with as many outputs; None if none of ``COMMON`` does.

    Raises ModelError for a file that is no checkpoint. Without torchvision nothing can be tried.
    """
    stored = read_checkpoint(path)
    try:
        from torchvision.models import get_model
    except ImportError:
        return None
    names = [name for part, family in COMMON.items() if any(f".{part}" in f".{key}" for key in stored.tensors) for name in family]
    for name in names:
        # Tensors on the meta device have names and shapes alone; torch warns that nothing is copied into them. Two classes may be one output.
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")
            for outputs in (classes, 1) if classes == 2 else (classes,):
                try:
                    load_weights(get_model(name, num_classes=outputs), stored, note=lambda _: None)
                    return f"torchvision:{name}"
                except ModelError:
                    continue
    return None
