"""Which layers read features of places, in the networks of four libraries: values against hooks whose outputs are reshaped by hand."""

import pytest
import torch
from torch import nn

from rightreasons.data.loading import Batch
from rightreasons.networks.classifier import Classifier
from rightreasons.networks.head import find_head, read_features
from rightreasons.networks.places import find_places
from rightreasons.networks.small_vit import SmallViT
from rightreasons.networks.training import _weights_to_train

SIDE, PATCH, GRID = 32, 4, 8


def timm_vit(**options):
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=SIDE, patch_size=PATCH, embed_dim=16, depth=2, num_heads=2, num_classes=3, **options)


def timm_deit():
    from timm.models.deit import VisionTransformerDistilled

    return VisionTransformerDistilled(img_size=SIDE, patch_size=PATCH, embed_dim=16, depth=2, num_heads=2, num_classes=3)


def timm_swin():
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(img_size=SIDE, patch_size=PATCH, embed_dim=8, depths=(2, 2), num_heads=(2, 2), window_size=4, num_classes=3)


def torchvision_vit():
    from torchvision.models import VisionTransformer

    return VisionTransformer(image_size=SIDE, patch_size=PATCH, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24, num_classes=3)


def torchvision_swin():
    from torchvision.models import SwinTransformer

    return SwinTransformer([PATCH, PATCH], 16, [2, 2], [2, 4], [4, 4], num_classes=3)


def huggingface(family, **options):
    import transformers

    config = getattr(transformers, f"{family}Config")(image_size=SIDE, num_labels=3, **options)
    return getattr(transformers, f"{family}ForImageClassification")(config)


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "patch_size": PATCH}
# The network; how many tokens stand before those of places, or None for a map; its grid; a module that reads them, and how it is called.
NETWORKS = {
    "timm ViT": (timm_vit, 1, GRID, "blocks.1.attn.qkv"),
    "timm ViT, four registers": (lambda: timm_vit(reg_tokens=4), 5, GRID, "blocks.1.attn.qkv"),
    "timm ViT, mean of tokens": (lambda: timm_vit(class_token=False, global_pool="avg"), 0, GRID, "blocks.1.mlp.fc1"),
    "timm DeiT": (timm_deit, 2, GRID, "blocks.1.mlp.fc1"),
    "timm Swin": (timm_swin, 0, GRID, "layers.0.blocks.1.mlp.fc1"),
    "torchvision ViT": (torchvision_vit, 1, GRID, "encoder.layers.encoder_layer_1.mlp.0"),
    "torchvision Swin": (torchvision_swin, None, GRID, "features.1.1.mlp.0"),
    "Hugging Face ViT": (lambda: huggingface("ViT", **SMALL), 1, GRID, "vit.layers.1.mlp.fc1"),
    "Hugging Face DeiT": (lambda: huggingface("DeiT", **SMALL), 2, GRID, "deit.layers.1.mlp.fc1"),
    "Hugging Face DINOv2": (lambda: huggingface("Dinov2WithRegisters", **SMALL), 5, GRID, "dinov2_with_registers.encoder.layer.1.mlp.fc1"),
    "Hugging Face Swin": (
        lambda: huggingface("Swin", patch_size=PATCH, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4),
        0,
        GRID,
        "swin.encoder.layers.0.blocks.1.mlp.fc1",
    ),
    "ours": (lambda: SmallViT(3), 1, GRID, "blocks.1.linear1"),
}


@pytest.fixture(scope="module")
def build():
    """Networks by name, each built once."""
    known = {}

    def one(name):
        if name not in known:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                known[name] = Classifier(NETWORKS[name][0]()).eval()
        return known[name]

    return one


def caught(model, layer, images):
    """What goes into a module."""
    found = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    with torch.no_grad():
        model(images)
    hook.remove()
    return found[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_layer_s_input_becomes_a_map(name, build):
    _, before, grid, layer = NETWORKS[name]
    model = build(name)
    images = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    module = model.network.get_submodule(layer)
    given = caught(model, module, images)
    by_hand = torch.empty(3, given.shape[-1], grid, grid)
    for row in range(grid):
        for column in range(grid):
            by_hand[:, :, row, column] = given[:, row, column] if before is None else given[:, before + row * grid + column]
    (places,) = [places for places in find_places(model, images.shape[1:]) if places.layer is module]
    assert places.grid == (grid, grid) and not places.is_convolution
    assert torch.equal(places.read(model, images), by_hand)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_heads_and_depth_are_found_in_transformers_as_in_other_networks(name, build):
    """The layers of "head" and "last-blocks", and the features that methods which fit the last layer anew read."""
    model = build(name)
    images = torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    batch = Batch(torch.arange(4), images, torch.arange(4) % 2)
    names = {id(weight): which for which, weight in model.network.named_parameters()}
    head, half = ([names[id(weight)] for weight in _weights_to_train(model, which, lambda: batch)] for which in ("head", "last-blocks"))
    last = head[0].removesuffix(".weight")
    assert head == [f"{last}.weight", f"{last}.bias"] and model.network.get_submodule(last).weight.shape[0] == 3
    assert set(head) <= set(half)
    assert not any(word in which for which in half for word in ("patch", "conv_proj", "class_token", "cls_token", "pos_embed", "features.0."))
    if name == "timm DeiT":
        return  # the mean of two heads is no linear head
    assert find_head(model, images) == f"network.{last}"
    assert torch.equal(read_features(model, [batch]).values, caught(model, model.network.get_submodule(last), images))


def test_an_image_that_is_not_square_has_rows_and_columns_of_its_own(build):
    model, images = build("torchvision Swin"), torch.rand(2, 3, SIDE, 2 * SIDE)
    found = [places.grid for places in find_places(model, images.shape[1:])]
    assert set(found) == {(GRID, 2 * GRID), (GRID // 2, GRID)}


class Windows(nn.Module):
    """Tokens in the order of their windows of four by four, and tokens that are laid out column by column."""

    def __init__(self, order):
        super().__init__()
        self.patches, self.order, self.layer, self.head = nn.Conv2d(3, 8, 4, 4), order, nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, images):
        maps = self.patches(images)
        if self.order == "windows":
            maps = maps.unflatten(2, (-1, 4)).unflatten(4, (-1, 4)).movedim(3, 4)
        tokens = (maps.mT if self.order == "columns" else maps).flatten(2).mT
        return self.head(self.layer(tokens).mean(1))


@pytest.mark.parametrize(("order", "found"), [("rows", 1), ("columns", 0), ("windows", 0)])
def test_tokens_in_another_order_than_the_image_s_are_left_alone(order, found, build_seeded):
    assert len(find_places(build_seeded(lambda: Windows(order)), (3, SIDE, SIDE))) == found


def test_pairs_of_tokens_are_no_places(build_seeded):
    """CaiT mixes its heads of attention by a linear layer, on axes (query, key) that look like a map."""
    from timm.models.cait import Cait

    model = build_seeded(lambda: Cait(img_size=SIDE, patch_size=PATCH, embed_dim=16, depth=1, num_heads=2, depth_token_only=1, num_classes=2))
    assert {places.grid for places in find_places(model, (3, SIDE, SIDE))} == {(GRID, GRID)}
