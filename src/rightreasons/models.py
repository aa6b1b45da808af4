"""Build, load and save classifiers: (batch, channel, height, width) in, (batch, class) logits out."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from rightreasons.errors import MissingExtra, ModelError

SOURCES = ("python:module:function", "torchvision:NAME")


def build_model(source: str, *, classes: int, root: Path, generator_seed: int) -> nn.Module:
    """An untrained network with ``classes`` outputs, its weights drawn from ``generator_seed``.

    ``python:module:function`` is looked up in ``root`` as well; the function is called with their number where it takes it.
    Raises ModelError where the source is unknown or cannot be built.
    """
    kind, _, name = source.partition(":")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_seed)
        if kind == "python" and name.count(":") == 1:
            return _build_python(name, classes, root)
        if kind == "torchvision" and name:
            return _build_torchvision(name, classes)
    raise ModelError(f"[model] source = {source!r} is not known; expected one of {', '.join(SOURCES)}")


def small_mlp(classes: int = 10) -> nn.Module:
    """The network of the DecoyMNIST studies: 784-50-30-10 with ReLU."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 30), nn.ReLU(), nn.Linear(30, classes))


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Weights from a safetensors file, or from a state dict saved by torch; nothing in the file is run.

    Raises ModelError where the file cannot be read, or does not fit the network.
    """
    try:
        state = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read the checkpoint {path}: {error}") from error
    except Exception as error:  # torch.load has no exception of its own for what weights_only refuses
        raise ModelError(
            f"the checkpoint {path} is not a plain state dict ({str(error).splitlines()[0]}): save model.state_dict(), or use safetensors"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"the checkpoint {path} holds a {type(state).__name__}, and a state dict of tensors was expected: save model.state_dict()")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"the checkpoint {path} does not fit the network: {' '.join(str(error).split())[:500]}") from error


def save_checkpoint(model: nn.Module, path: Path) -> None:
    """The weights as safetensors; tied weights are written once each."""
    safetensors.torch.save_model(model, str(path))


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


def model_device(model: nn.Module) -> torch.device:
    """Where the model's weights are."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def output_entropy(logits: Float[Tensor, "image class_"]) -> Float[Tensor, " image"]:
    """H(f(x)) in nats, in float32 whatever the logits came in."""
    log_p = logits.float().log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def best_device() -> torch.device:
    """CUDA, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")


def _build_python(name: str, classes: int, root: Path) -> nn.Module:
    module_name, function_name = name.split(":")
    sys.path.insert(0, str(root))
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"[model] source = 'python:{name}': {error}; looked in {root} and in the installed packages") from error
    finally:
        sys.path.remove(str(root))
    model = _call_with_classes(function, classes)
    if not isinstance(model, nn.Module):
        raise ModelError(f"[model] source = 'python:{name}' gave a {type(model).__name__}, and a torch.nn.Module was expected")
    return model


def _call_with_classes(function: Callable[..., object], classes: int) -> object:
    """By name where the function has a parameter of that name, else as its only required one, else not at all."""
    parameters = inspect.signature(function).parameters
    for name in ("classes", "num_classes"):
        if name in parameters:
            return function(**{name: classes})
    required = [
        parameter for parameter in parameters.values() if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    return function(classes) if required else function()


def _build_torchvision(name: str, classes: int) -> nn.Module:
    try:
        from torchvision.models import get_model
    except ImportError as error:
        raise MissingExtra("torchvision", "models") from error
    try:
        return get_model(name, num_classes=classes)
    except ValueError as error:
        raise ModelError(f"[model] source = 'torchvision:{name}': {error}") from error
