"""Classifiers made uniform, loaded and saved: images in 0 to 1, (batch, channel, height, width), in; (batch, class) logits out."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn

from rightreasons.checkpoints import Note, load_weights, read_checkpoint
from rightreasons.errors import ConfigError, ModelError
from rightreasons.presets import Preset

# The environment variable that names the device to work on; the commands' --device sets it.
DEVICE = "RIGHTREASONS_DEVICE"


class Classifier(nn.Module):
    """A network with its input and output made uniform; ``network`` is the user's own, and checkpoints hold its weights alone.

    Images are normalised as the preset says, and grey ones are repeated where it has three channels. Logits are taken out of an output
    record, and a single logit z of a binary classifier becomes (-z/2, z/2), which has the same probabilities. ``order`` has the network's
    output for each class, where that is known; it is no part of the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preset: Preset | None = None, order: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.network, self.preset, self.order = network, preset or Preset(), order
        for name in ("mean", "std"):
            values = torch.tensor(getattr(self.preset, name), dtype=torch.float32)
            self.register_buffer(name, values.view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, one per class."""
        if self.preset.mean:
            if images.shape[1] == 1 and len(self.preset.mean) > 1:
                images = images.expand(-1, len(self.preset.mean), -1, -1)
            if self.preset.channels:
                images = images[:, list(self.preset.channels)]
            images = (images - self.mean) / self.std
        output = self.network(images)
        logits = getattr(output, "logits", output)
        if isinstance(logits, Tensor) and logits.shape[1:] in ((), (1,)):
            logits = logits.view(-1, 1) / 2
            logits = torch.cat([-logits, logits], 1)
        if self.moves_outputs and isinstance(logits, Tensor) and logits.shape[1:] == (len(self.order or ()),):
            logits = logits[:, list(self.order or ())]
        return logits

    @property
    def moves_outputs(self) -> bool:
        """Whether the network's outputs are in another order than the classes."""
        return self.order is not None and self.order != tuple(range(len(self.order)))


def as_classifier(model: nn.Module) -> Classifier:
    """The model itself where it is one, else wrapped into one with no normalisation."""
    return model if isinstance(model, Classifier) else Classifier(model)


def unwrap(model: nn.Module) -> nn.Module:
    """What ``as_classifier`` was given; a classifier with a normalisation of its own stays whole."""
    return model.network if isinstance(model, Classifier) and model.preset == Preset() and not model.moves_outputs else model


def small_mlp(classes: int = 10) -> nn.Module:
    """The network of the DecoyMNIST studies: 784-50-30-10 with ReLU."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 30), nn.ReLU(), nn.Linear(30, classes))


def load_checkpoint(model: nn.Module, path: Path, *, note: Note = lambda _: None) -> None:
    """Weights from a safetensors file, a state dict saved by torch or a training checkpoint; ``note`` is told what of it was taken.

    Nothing in the file is run. Raises ModelError where the file cannot be read, or does not fit the network.
    """
    load_weights(as_classifier(model).network, read_checkpoint(path), note=note)


def save_checkpoint(model: nn.Module, path: Path) -> None:
    """The network's weights as safetensors; tied weights are written once each."""
    safetensors.torch.save_model(as_classifier(model).network, str(path))


def check_model(model: nn.Module, images: Tensor, classes: tuple[str, ...]) -> None:
    """One forward pass on a few images. Raises ModelError unless it gives one finite logit per class and image."""
    model.eval()
    try:
        with torch.inference_mode():
            logits = model(images.to(model_device(model)))
    except Exception as error:  # whatever somebody's own network raises on a wrong shape
        raise ModelError(f"the model fails on images of shape {tuple(images.shape)} (batch, channel, height, width): {error}") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ModelError(f"the model gives {came} for {len(images)} images; logits of shape ({len(images)}, {len(classes)}) were expected")
    if logits.shape[1] != len(classes):
        raise ModelError(
            f"the model has {logits.shape[1]} outputs and the data have {len(classes)} classes ({', '.join(classes[:12])}): "
            "use the checkpoint that was trained on these classes, or describe the classes that the model knows"
        )
    if not logits.isfinite().all():
        raise ModelError("the model gives NaN or infinite logits on the first images: check the checkpoint and the scale of its input (0 to 1)")
    last = list(model.modules())[-1]
    if isinstance(last, nn.Sigmoid):
        raise ModelError(
            "the model ends in a sigmoid: it is a multi-label classifier, or gives probabilities. One class per image is needed, and logits: "
            "leave the last sigmoid out"
        )


def model_device(model: nn.Module) -> torch.device:
    """Where the model's weights are."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def output_entropy(logits: Float[Tensor, "image class_"]) -> Float[Tensor, " image"]:
    """H(f(x)) in nats, in float32 whatever the logits came in."""
    log_p = logits.float().log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def best_device() -> torch.device:
    """The device that RIGHTREASONS_DEVICE names; without it CUDA, else MPS, else the CPU. Raises ConfigError where it cannot be used."""
    if name := os.environ.get(DEVICE):
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:  # torch built without CUDA raises the latter
            raise ConfigError(f"the device {name!r} cannot be used: {str(error).splitlines()[0]} Give another --device, such as cpu") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")


def place_model(model: nn.Module, images: Tensor) -> nn.Module:
    """The model on the best device; where it has 2-d convolutions and can take it, with channels last, which is about twice as fast.

    ``images`` are a few to try with. A network that calls ``view`` on feature maps needs channels first, and keeps them.
    """
    model = model.to(best_device()).eval()
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        model = model.to(memory_format=torch.channels_last)
        try:
            with torch.inference_mode():
                model(images.to(model_device(model)))
        except RuntimeError:
            model = model.to(memory_format=torch.contiguous_format)
    return model


def hash_weights(model: nn.Module) -> str:
    """SHA-256 over names and values of a model's weights and buffers, and over the order of its outputs where that is not the classes'."""
    digest = hashlib.sha256(repr(model.order).encode() if isinstance(model, Classifier) and model.moves_outputs else b"")
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
