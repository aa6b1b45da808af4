"""Classifiers made uniform, loaded and saved: images in 0 to 1, (batch, channel, height, width), in; (batch, class) logits out."""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import safetensors.torch
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rightreasons.common.device import best_device
from rightreasons.errors import ModelError
from rightreasons.networks.checkpoints import Note, load_weights, read_checkpoint
from rightreasons.networks.graph import find_frozen_part, last_function, look_like_probabilities
from rightreasons.networks.presets import Preset

# The logits of an image alone and in a batch may differ only by rounding: by less than this share of the largest logit.
ALONE_ERROR = 1e-2


class Classifier(nn.Module):
    """A network with its input and output made uniform; ``network`` is the user's own, and checkpoints hold its weights alone.

    Images are put into the preset's channel order and normalised as it says; grey images are repeated if it has three channels. Logits are taken
    from an output record, from "logits" in a dict or from the first place of a tuple. A single logit z of a binary classifier becomes
    (-z/2, z/2), which has the same probabilities. A network that was compiled as a whole is used uncompiled, so that its weights keep
    their names. ``order`` has the network's output for each class, if that is known; it is not saved with the weights. ``layout`` is how the
    images' numbers lie in memory when the network gets them; training changes it for a while (``networks.training``).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preset: Preset | None = None, order: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.network, self.preset, self.order = getattr(network, "_orig_mod", network), preset or Preset(), order
        self.layout = torch.preserve_format
        for name in ("mean", "std"):
            values = torch.tensor(getattr(self.preset, name), dtype=torch.float32)
            self.register_buffer(name, values.view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, one per class."""
        outputs = self.outputs(images)
        if outputs.shape[1:] == (1,):
            half = outputs / 2
            outputs = torch.cat([-half, half], 1)
        if self.order is not None and self.moves_outputs and outputs.shape[1:] == (len(self.order),):
            outputs = outputs[:, list(self.order)]
        return outputs

    def outputs(self, images: Tensor) -> Tensor:
        """The network's own output as (image, output); a single logit is one column. Raises ModelError if it gives no tensor."""
        channels = len(self.preset.mean) or len(self.preset.channels)
        if images.shape[1] == 1 and channels > 1:
            images = images.expand(-1, channels, -1, -1)
        if self.preset.channels:
            images = images[:, list(self.preset.channels)]
        if self.preset.mean:
            images = (images - self.mean) / self.std
        given = self.network(images if self.layout == torch.preserve_format else images.contiguous(memory_format=self.layout))
        outputs = getattr(given, "logits", given)
        if isinstance(outputs, Mapping):
            outputs = outputs.get("logits", outputs)
        elif isinstance(outputs, (tuple, list)) and outputs:
            outputs = outputs[0]
        if not isinstance(outputs, Tensor):
            keys = f" with the keys {', '.join(map(repr, given))}" if isinstance(given, Mapping) else ""
            raise ModelError(f"the model gives a {type(given).__name__}{keys}; logits are expected, alone, first in a tuple, or under 'logits'")
        # squeeze() takes the axis of a single image, or of a single logit.
        if outputs.ndim < 2 and outputs.numel() % len(images) == 0:
            outputs = outputs.reshape(len(images), -1)
        return outputs

    @property
    def moves_outputs(self) -> bool:
        """Whether the network's outputs are in another order than the classes."""
        return self.order is not None and self.order != tuple(range(len(self.order)))


def as_classifier(model: nn.Module) -> Classifier:
    """The model itself if it is a Classifier, else a Classifier around it without normalisation."""
    return model if isinstance(model, Classifier) else Classifier(model)


def unwrap(model: nn.Module) -> nn.Module:
    """Undoes ``as_classifier``: gives back the wrapped network, unless the classifier has a normalisation or order of its own."""
    return model.network if isinstance(model, Classifier) and model.preset == Preset() and not model.moves_outputs else model


def small_mlp(classes: int = 10) -> nn.Module:
    """The network of the DecoyMNIST studies: 784-50-30-10 with ReLU."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 30), nn.ReLU(), nn.Linear(30, classes))


def small_cnn(classes: int = 2) -> nn.Module:
    """A network for coloured digits of 28 pixels a side: three convolutions with ReLU and two max-pools between them, and two linear layers."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, classes)),
    )


def load_checkpoint(model: nn.Module, path: Path, *, note: Note = lambda _: None) -> None:
    """Loads weights from a safetensors file, a state dict saved by torch or a training checkpoint; ``note`` reports which part was taken.

    Nothing in the file is run. Raises ModelError if the file cannot be read, or does not fit the network.
    """
    load_weights(as_classifier(model).network, read_checkpoint(path), note=note)


def save_checkpoint(model: nn.Module, path: Path, classes: Sequence[str] = ()) -> None:
    """The network's weights as safetensors; tied weights are written once each.

    The names of ``classes``, given in the data's order, go into the file in the order of the network's outputs, where ``read_checkpoint`` finds them.
    """
    classifier = as_classifier(model)
    names = [classes[place] for place in _invert(classifier.order)] if classifier.order else list(classes)
    safetensors.torch.save_model(classifier.network, str(path), metadata={"classes": json.dumps(names)} if names else None)


def _invert(order: Sequence[int]) -> list[int]:
    """The class of each output, from the output of each class."""
    return sorted(range(len(order)), key=lambda place: order[place])


def check_model(
    model: nn.Module,
    images: Float[Tensor, "image channel height width"],
    classes: tuple[str, ...],
    indices: Int[Tensor, " image"] | None = None,
    *,
    trained: bool = True,
) -> Float[Tensor, "image class_"]:
    """The logits of some images, from a model in eval mode that was tried on all of them at once and on one alone.

    Raises ModelError unless it gives one finite logit per class and image that depends on that image alone and is not a probability.
    ``indices`` are the images' numbers for messages. The logits of an untrained model may lie within 0 and 1 by accident.
    """
    classifier = as_classifier(model)
    _set_eval(model)
    logits = _try_model(classifier, images, len(classes))
    if logits.shape[1] != len(classes):
        raise ModelError(
            f"the model has {logits.shape[1]} outputs and the data have {len(classes)} classes ({', '.join(classes[:12])}): "
            "use the checkpoint that was trained on these classes, or describe the classes that the model knows"
        )
    check_finite(logits, images, torch.arange(len(images)) if indices is None else indices, "logits")
    alone = _try_model(classifier, images[:1], len(classes))
    if alone.shape != logits[:1].shape or (alone - logits[:1]).abs().max() > ALONE_ERROR * logits.abs().max():
        raise ModelError(
            f"the model gives {_show(alone)} for an image alone, and {_show(logits[:1])} for it beside {len(images) - 1} others. Each answer has to "
            "depend on its own image alone: look for squeeze(), batch statistics (track_running_stats=False), and dropout that eval() leaves on"
        )
    with frozen(model), torch.enable_grad():
        leaf = images[:2].to(model_device(model)).requires_grad_()
        try:
            outputs = classifier.outputs(leaf.clone())  # a network may work in place
        except RuntimeError as error:
            raise ModelError(f"the model works without gradients and fails with them: {error}") from error
    if not outputs.requires_grad:
        raise ModelError(
            f"no gradient leads from the model's logits back to the image, so that nothing explains them: {find_frozen_part(classifier.network)}"
        )
    numbers = logits if outputs.shape[1] > 1 else 2 * logits[:, 1:]
    if look_like_probabilities(numbers, last_function(outputs), trained=trained):
        raise ModelError(
            f"the model gives probabilities, such as {_show(numbers[:1])}, and logits are needed: leave out its last sigmoid or softmax. "
            "One class per image is needed as well, so that a multi-label classifier does not fit"
        )
    return logits


def _set_eval(model: nn.Module) -> None:
    try:
        model.eval()
    except Exception as error:  # NotImplementedError of torch.export, and whatever somebody's own network raises
        raise ModelError(f"the model cannot be put into eval mode ({error}): use the nn.Module that it was exported from") from error


def _try_model(model: nn.Module, images: Tensor, classes: int) -> Tensor:
    """Logits on the CPU. Inference mode is not used: tensors that a network makes in its first call and keeps must take part in gradients later."""
    try:
        with torch.no_grad():
            logits = model(images.to(model_device(model)))
    except ModelError:
        raise
    except Exception as error:  # whatever somebody's own network raises on a wrong shape
        raise ModelError(f"the model fails on images of shape {tuple(images.shape)} (batch, channel, height, width): {error}") from error
    if logits.ndim != 2 or len(logits) != len(images):
        came = tuple(logits.shape)
        raise ModelError(f"the model gives {came} for {len(images)} images; logits of shape ({len(images)}, {classes}) were expected")
    return logits.cpu()


def _show(row: Tensor) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in row.flatten()[:5].tolist()) + (", ...)" if row.numel() > 5 else ")")


def check_finite(values: Tensor, images: Float[Tensor, "image channel height width"], indices: Int[Tensor, " image"], what: str) -> None:
    """Raises ModelError if any of ``values`` (image, ...) is not finite; it names the first such image and describes its pixels."""
    bad = (~values.reshape(len(values), -1).isfinite()).any(1).nonzero()[:, 0].tolist()
    if not bad:
        return
    pixels = images[bad[0]]
    if pixels.isfinite().all():
        flat = " (a deviation of 0 may be divided by)" if pixels.min() == pixels.max() else ""
        cause = f"the checkpoint, and at what the network does to an image whose pixels go from {pixels.min():.3g} to {pixels.max():.3g}{flat}"
    else:
        cause = "the image, which has such pixels itself"
    more = f", and of {len(bad) - 1} more of {len(values)}" if len(bad) > 1 else ""
    raise ModelError(f"the {what} of image {int(indices[bad[0]])}{more} are not finite (NaN or infinite): look at {cause}")


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode, frozen parameters (so that only what depends on the image requires a gradient) and no compilation; all is restored at the end."""
    training = [module for module in model.modules() if module.training]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and its import takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            yield
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)
            for module in training:
                module.training = True


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy. Tensors that the last forward pass left in attributes are copied without their graph, which cannot be copied."""
    left = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor) and not value.is_leaf]
    copied = copy.deepcopy(model, {id(value): value.detach().clone() for value in left})
    for parameter in copied.parameters():
        if not parameter.is_leaf:  # so torch.jit copies them, and then none can be trained
            parameter.detach_().requires_grad_()
    return copied


def model_device(model: nn.Module) -> torch.device:
    """The device of the model's weights."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def output_entropy(logits: Float[Tensor, "image class_"]) -> Float[Tensor, " image"]:
    """The entropy H(f(x)) in nats, computed in float32 whatever the type of the logits."""
    log_p = logits.float().log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def place_model(model: nn.Module, images: Tensor) -> nn.Module:
    """Moves the model to the best device, with channels last if it has 2-d convolutions and can take it, which is about twice as fast.

    A few ``images`` are tried. A network that calls ``view`` on feature maps needs channels first, and keeps them.
    """
    _set_eval(model)
    model = model.to(best_device())
    if any(isinstance(module, nn.Conv2d) for module in model.modules()):
        model = model.to(memory_format=torch.channels_last)
        try:
            with torch.no_grad():
                model(images.to(model_device(model)))
        except Exception:  # what does not depend on the format, check_model tells of
            model = model.to(memory_format=torch.contiguous_format)
    return model


def hash_weights(model: nn.Module) -> str:
    """SHA-256 over names and values of a model's weights and buffers, and over the order of its outputs if that is not the classes'."""
    digest = hashlib.sha256(repr(model.order).encode() if isinstance(model, Classifier) and model.moves_outputs else b"")
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
