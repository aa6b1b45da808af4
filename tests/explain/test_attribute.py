"""DeepLIFT SHAP against slow derivations, Captum where it is right, and the completeness axiom everywhere."""

import weakref
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rightreasons.errors import ModelError, UnsupportedLayer
from rightreasons.explain.attribute import attribute_images, check_attribution


def draw(count: int, channels: int = 3, side: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def assert_complete(model, images, baselines, bound: float = 1e-4, **options):
    """Sum of a heatmap = f_c(x) - mean_b f_c(b), within ``bound`` of that difference."""
    result = attribute_images(model, images, baselines, **options)
    with torch.no_grad():
        logits, reference = model.eval()(images.clone()), model(baselines.clone())
    for heatmap, target, logit, reported in zip(result.heatmaps, result.targets, logits, result.completeness_error, strict=True):
        difference = (logit[target] - reference[:, target].mean()).item()
        assert abs(heatmap.sum().item() - difference) < bound * abs(difference)
        assert reported < bound
    return result


class Net(nn.Module):
    """A small network whose middle is given."""

    def __init__(self, middle) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.LazyLinear(4)
        self.relu, self.relu_in_place = nn.ReLU(), nn.ReLU(inplace=True)
        self.middle = middle

    def forward(self, x):
        return self.head(self.middle(self, self.first(x) - 0.1).flatten(1))


def imul(left, right):
    left *= right
    return left


def by_hand(centred):
    return centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + 1e-6)


MIDDLES = {
    "nn.ReLU, reused": lambda net, h: net.relu(net.second(net.relu(h))),
    "nn.ReLU in place, reused": lambda net, h: net.relu_in_place(net.second(net.relu_in_place(h))),
    "F.relu": lambda net, h: F.relu(net.second(F.relu(h))),
    "F.relu in place": lambda net, h: F.relu(net.second(F.relu(h, inplace=True)), True),
    "torch.relu": lambda net, h: torch.relu(net.second(torch.relu(h))),
    "torch.relu by keyword": lambda net, h: torch.relu(input=net.second(F.relu(input=h))),
    "torch.relu_": lambda net, h: torch.relu_(net.second(torch.relu_(h))),
    "Tensor.relu": lambda net, h: net.second(h.relu()).relu(),
    "Tensor.relu_": lambda net, h: net.second(h.relu_()).relu_(),
    "F.threshold": lambda net, h: F.threshold(net.second(F.threshold(h, 0.05, 0.0)), 0.0, -0.2),
    "residual, in place": lambda net, h: net.relu_in_place(net.second(net.relu_in_place(h)).add_(h)),
    "same tensor, two activations": lambda net, h: torch.relu(h) + net.second(torch.relu(-h)),
    "MaxPool2d(3, 2, 1)": lambda net, h: nn.MaxPool2d(3, 2, 1)(net.relu(h)),
    "MaxPool2d, every pixel in nine windows": lambda net, h: nn.MaxPool2d(3, 1)(h),
    "max_pool2d with indices": lambda net, h: F.max_pool2d(net.relu(h), 2, return_indices=True)[0],
    "max_pool2d, all by position": lambda net, h: F.max_pool2d(h, 3, 2, 1, 1, False, True)[0],
    "torch.max_pool2d": lambda net, h: torch.max_pool2d(h, 2, stride=1),
    "ceil_mode": lambda net, h: nn.MaxPool2d(2, 2, ceil_mode=True)(h),
    "dilation": lambda net, h: nn.MaxPool2d(2, 1, dilation=2)(net.relu(h)),
    "pool, then ReLU in place": lambda net, h: net.relu_in_place(nn.MaxPool2d(3, 2, 1)(h)),
    "nn.ReLU6": lambda net, h: nn.ReLU6()(net.second(10 * h)),
    "nn.ReLU6 in place": lambda net, h: nn.ReLU6(inplace=True)(net.second(10 * h)),
    "F.relu6 and F.hardtanh": lambda net, h: F.relu6(net.second(F.hardtanh(10 * h, 0.0, 6.0))),
    "clamp": lambda net, h: net.second((10 * h).clamp(0, 6)).clamp_(min=-0.5).clip(max=0.5),
    "leaky_relu, by name and in place": lambda net, h: F.leaky_relu(net.second(F.leaky_relu(h, inplace=True)), negative_slope=0.2),
    "nn.ELU": lambda net, h: nn.ELU()(net.second(nn.ELU(inplace=True)(h))),
    "nn.SiLU": lambda net, h: nn.SiLU()(net.second(nn.SiLU(inplace=True)(h))),
    "nn.GELU": lambda net, h: nn.GELU(approximate="tanh")(net.second(nn.GELU()(h))),
    "nn.Hardswish": lambda net, h: nn.Hardswish()(net.second(nn.Hardswish(inplace=True)(9 * h))),
    "nn.Hardsigmoid": lambda net, h: nn.Hardsigmoid()(net.second(nn.Hardsigmoid(inplace=True)(9 * h))),
    "sigmoid": lambda net, h: torch.sigmoid(net.second(h.sigmoid()).sigmoid_()),
    "tanh": lambda net, h: F.tanh(net.second(h.tanh()).tanh_()),
    "softplus": lambda net, h: nn.Softplus(beta=2)(net.second(F.softplus(h))),
    "a product by keyword": lambda net, h: torch.mul(input=h, other=h.mean(1, keepdim=True)),
    "x * sigmoid(x)": lambda net, h: h * torch.sigmoid(h),
    "x * sigmoid(x), in place": lambda net, h: net.second(h).mul_(h.sigmoid()),
    "x *= gate": lambda net, h: imul(net.second(h), h.mean((2, 3), keepdim=True)),
    "squeeze and excitation": lambda net, h: net.second(h.mean((2, 3), keepdim=True).expand(-1, -1, 3, 3)).mean((2, 3), keepdim=True).sigmoid() * h,
    "product, then ReLU in place": lambda net, h: net.relu_in_place(h.mul(0.1 - h.sigmoid())) + h.relu_(),
    "a square three ways": lambda net, h: h * h + h**2 - h.square() / 3,
    "a quotient by the image": lambda net, h: h / (1 + h * h) + 1 / (2 + h.abs()),
    "a quotient in place": lambda net, h: net.second(h).div_(2 + h.tanh()),
    "layer norm, channels last": lambda net, h: F.layer_norm(h.permute(0, 2, 3, 1), (6,), torch.linspace(1, 2, 6).to(h)).permute(0, 3, 1, 2),
    "layer norm of everything": lambda net, h: F.layer_norm(h, h.shape[1:]),
    "layer norm by hand": lambda net, h: by_hand(h - h.mean(1, keepdim=True)),
    "group norm": lambda net, h: F.group_norm(h, 3, bias=torch.linspace(0, 1, 6).to(h), weight=torch.linspace(1, 2, 6).to(h)),
    "instance norm": lambda net, h: nn.InstanceNorm2d(6)(h),
    "two pools": lambda net, h: F.max_pool2d(net.second(F.max_pool2d(h, 3, 2)), 2, 1),
}


@pytest.mark.parametrize("name", MIDDLES)
def test_heatmaps_are_complete_however_a_nonlinearity_is_called(name, build_seeded):
    def build():
        net = Net(MIDDLES[name])
        net(draw(1))  # the lazy layer takes its size
        return net

    # In double precision, so that whatever is left is the rule's and not rounding's.
    assert_complete(build_seeded(build).double(), draw(5, seed=1).double(), draw(3, seed=2).double(), bound=1e-9)


def test_heatmaps_of_an_mlp_and_a_cnn_are_complete(tiny_mlp, tiny_cnn):
    assert_complete(tiny_mlp, draw(6, 1, 4, seed=1), draw(4, 1, 4, seed=2))
    assert_complete(tiny_cnn, draw(6, seed=1), draw(4, seed=2))


def test_heatmaps_of_resnet18_are_complete(build_seeded):
    from torchvision.models import resnet18

    model = build_seeded(lambda: resnet18(num_classes=5))
    assert_complete(model, draw(3, side=64, seed=1), draw(2, side=64, seed=2))


def captum_heatmaps(model, images, baselines, targets):
    captum = pytest.importorskip("captum.attr", reason="comes with the extra 'rivals'")
    return captum.DeepLiftShap(model).attribute(images, baselines, target=targets).sum(1).detach()


@pytest.mark.filterwarnings("ignore::UserWarning:captum", "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:Setting forward")
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_equals_captum_where_captum_is_right(kind, tiny_mlp, build_seeded):
    cnn = build_seeded(lambda: nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.AvgPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(5, 3)))
    model, images, baselines = {"mlp": tiny_mlp, "cnn": cnn}[kind].eval(), draw(5, 1, 4, seed=1), draw(4, 1, 4, seed=2)
    ours = attribute_images(model, images, baselines)
    torch.testing.assert_close(ours.heatmaps, captum_heatmaps(model, images, baselines, ours.targets), atol=1e-5, rtol=0)


def test_rescale_rule_by_hand(build_seeded):
    """Eq. 2 on one hidden layer, a product and a sum at a time."""
    model = build_seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)))
    images, baselines = draw(3, 2, 2, seed=1) - 0.5, draw(2, 2, 2, seed=2) - 0.5
    baselines[1] = images[0]  # differences of zero take the derivative
    ours = attribute_images(model, images, baselines)
    into, bias, out = model[1].weight.tolist(), model[1].bias.tolist(), model[3].weight.tolist()
    for n, image in enumerate(images.flatten(1).tolist()):
        expected = [0.0] * 4  # pixels; input i is channel i // 4 of pixel i % 4
        for baseline in baselines.flatten(1).tolist():
            for hidden in range(5):
                z = bias[hidden] + sum(w * x for w, x in zip(into[hidden], image, strict=True))
                z_b = bias[hidden] + sum(w * x for w, x in zip(into[hidden], baseline, strict=True))
                multiplier = float(z > 0) if abs(z - z_b) < 1e-8 else (max(z, 0) - max(z_b, 0)) / (z - z_b)
                for i in range(8):
                    change = image[i] - baseline[i]
                    expected[i % 4] += out[int(ours.targets[n])][hidden] * multiplier * into[hidden][i] * change / len(baselines)
        torch.testing.assert_close(ours.heatmaps[n].flatten(), torch.tensor(expected), atol=1e-5, rtol=1e-4)


def test_max_pool_rule_by_hand(build_seeded):
    """Eq. 3: the change of each window goes to the pixel that caused it; overlapping windows add up."""
    model = build_seeded(lambda: nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(9, 2)))
    images, baselines = draw(2, 1, 5, seed=1), draw(2, 1, 5, seed=2)
    ours = attribute_images(model, images, baselines)
    for n in range(2):
        expected = torch.zeros(5, 5)
        weight = model[2].weight[ours.targets[n]].view(3, 3)
        for baseline in baselines[:, 0]:
            image = images[n, 0]
            for row in range(3):
                for column in range(3):
                    window = [(y, x) for y in range(2 * row - 1, 2 * row + 2) for x in range(2 * column - 1, 2 * column + 2)]
                    window = [(y, x) for y, x in window if 0 <= y < 5 and 0 <= x < 5]
                    top, top_of_baseline = (max(window, key=lambda place, of=of: of[place].item()) for of in (image, baseline))
                    rise = (image[top] - baseline[top_of_baseline]).item()
                    expected[top if rise >= 0 else top_of_baseline] += weight[row, column].item() * rise / len(baselines)
        torch.testing.assert_close(ours.heatmaps[n], expected, atol=1e-6, rtol=1e-5)


def test_without_nonlinearity_it_is_gradient_times_difference(build_seeded):
    model = build_seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3)).eval())
    images, baselines = draw(4, seed=1), draw(3, seed=2)
    ours = attribute_images(model, images, baselines)
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf).gather(1, ours.targets[:, None]).sum(), leaf)
    torch.testing.assert_close(ours.heatmaps, (gradient * (images - baselines.mean(0))).sum(1), atol=1e-6, rtol=1e-4)


def test_mean_over_baselines(tiny_cnn):
    images, baselines = draw(3, seed=1), draw(4, seed=2)
    targets = torch.tensor([0, 1, 2])
    one_each = torch.stack([attribute_images(tiny_cnn, images, b[None], targets).heatmaps for b in baselines])
    torch.testing.assert_close(attribute_images(tiny_cnn, images, baselines, targets).heatmaps, one_each.mean(0), atol=1e-6, rtol=1e-4)


def test_an_image_is_without_effect_against_itself(tiny_cnn):
    images = draw(2, seed=1)
    assert attribute_images(tiny_cnn, images[:1], images[:1]).heatmaps.abs().max() == 0


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_chunks_change_nothing(tiny_cnn, chunk):
    images, baselines = draw(7, seed=1), draw(3, seed=2)
    whole, parts = attribute_images(tiny_cnn, images, baselines), attribute_images(tiny_cnn, images, baselines, chunk=chunk)
    assert torch.equal(whole.targets, parts.targets)
    torch.testing.assert_close(whole.heatmaps, parts.heatmaps, atol=1e-7, rtol=1e-4)


def test_targets_are_the_prediction_or_what_is_asked_for(tiny_cnn):
    images, baselines = draw(5, seed=1), draw(2, seed=2)
    by_default = attribute_images(tiny_cnn, images, baselines)
    assert torch.equal(by_default.targets, tiny_cnn.eval()(images).argmax(1))
    wanted = (by_default.targets + 1) % 3
    asked = assert_complete(tiny_cnn, images, baselines, targets=wanted, chunk=2)
    assert torch.equal(asked.targets, wanted)
    assert not torch.allclose(asked.heatmaps, by_default.heatmaps)


def test_double_precision_stays_double(tiny_cnn):
    result = assert_complete(tiny_cnn.double(), draw(2, seed=1).double(), draw(2, seed=2).double(), bound=1e-10)
    assert result.heatmaps.dtype == torch.float64


def test_progress_tells_how_many_images_are_done(tiny_mlp):
    told = []
    attribute_images(tiny_mlp, draw(5, 1, 4), draw(2, 1, 4), chunk=2, progress=lambda *at: told.append(at))
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_the_model_never_sees_more_than_a_chunk(tiny_mlp):
    seen = []
    tiny_mlp.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    attribute_images(tiny_mlp, draw(10, 1, 4), draw(3, 1, 4), chunk=4)
    assert seen == [1, 2, 4, 4, 2]  # the first baseline, the others, then every image once


def test_what_autograd_keeps_does_not_grow_with_the_images(tiny_cnn):
    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor

    def peak_bytes(count):
        alive, peak = weakref.WeakSet(), 0

        def keep(tensor):
            nonlocal peak
            kept = Kept(tensor)
            alive.add(kept)
            peak = max(peak, sum(other.tensor.nbytes for other in alive))
            return kept

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor):
            attribute_images(tiny_cnn, draw(count), draw(2, seed=1), chunk=2)
        return peak

    assert 0 < peak_bytes(12) < 1.1 * peak_bytes(2)


@pytest.mark.parametrize("fails", [False, True])
def test_modes_gradients_and_inputs_are_left_as_they_were(tiny_cnn, fails):
    tiny_cnn.train()
    tiny_cnn.norm.eval()
    tiny_cnn.first.weight.requires_grad_(False)
    modes = {name: module.training for name, module in tiny_cnn.named_modules()}
    wants = {name: parameter.requires_grad for name, parameter in tiny_cnn.named_parameters()}
    state = {name: value.clone() for name, value in tiny_cnn.state_dict().items()}
    if fails:
        tiny_cnn.third.register_forward_hook(lambda module, inputs, output: output.sort(1).values)
        with pytest.raises(UnsupportedLayer):
            attribute_images(tiny_cnn, draw(2), draw(2, seed=1))
    else:
        attribute_images(tiny_cnn, draw(2), draw(2, seed=1))
    assert {name: module.training for name, module in tiny_cnn.named_modules()} == modes
    assert {name: parameter.requires_grad for name, parameter in tiny_cnn.named_parameters()} == wants
    assert all(parameter.grad is None for parameter in tiny_cnn.parameters())
    assert all(torch.equal(value, state[name]) for name, value in tiny_cnn.state_dict().items())


def test_images_and_baselines_survive_a_model_that_works_in_place(tiny_cnn):
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = tiny_cnn

        def forward(self, x):
            return self.network(x.sub_(0.5).relu_())

    images, baselines = draw(3, seed=1), draw(2, seed=2)
    copies = images.clone(), baselines.clone()
    result = attribute_images(InPlace(), images, baselines)
    assert torch.equal(images, copies[0])
    assert torch.equal(baselines, copies[1])
    assert result.completeness_error.max() < 1e-4


def test_works_where_gradients_are_switched_off_and_draws_nothing(tiny_cnn):
    images, baselines = draw(2, seed=1), draw(2, seed=2)
    state = torch.get_rng_state()
    with torch.no_grad():
        quiet = attribute_images(tiny_cnn, images, baselines)
    assert torch.equal(quiet.heatmaps, attribute_images(tiny_cnn, images, baselines).heatmaps)
    assert torch.equal(torch.get_rng_state(), state)


class Calls(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.head = nn.Linear(9, 3)

    def forward(self, x):
        return self.head(self.function(x.mean(1)).mean(1))


REFUSED = {
    "sorting": (lambda h: h.sort(1).values, "sort"),
    "three operands": (lambda h: torch.einsum("nij,njk,nkl->nil", h, h, h), "einsum"),
    "softmax without an axis": (lambda h: F.softmax(h.flatten(1)).view_as(h), "softmax without an axis"),
    "the largest of all": (lambda h: h + h.max(), "max over all axes"),
    "attention that drops at random": (lambda h: F.scaled_dot_product_attention(h, h, h, dropout_p=0.5), "scaled_dot_product_attention with"),
    "power of the image": (lambda h: h**h, "pow"),
    "bounds that depend on the image": (lambda h: h.clamp(max=h.mean((1, 2), keepdim=True)), "clamp"),
    "another bound for each place": (lambda h: h.clamp(max=torch.linspace(0, 1, 9)), "clamp"),
    "quotient, rounded": (lambda h: torch.div(torch.ones(9), 1 + h, rounding_mode="trunc"), "div"),
    "weights and a bias that depend on the image": (lambda h: F.linear(h, h[0], h[0, 0]), "linear with weights and a bias"),
    "batch statistics": (lambda h: F.batch_norm(h, None, None, training=True), "batch_norm"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_rule_does_not_cover_is_refused_by_name(case):
    function, name = REFUSED[case]
    model = nn.Sequential(OrderedDict(stem=nn.Identity(), block=Calls(function)))
    for refuse in (lambda: attribute_images(model, draw(3, seed=1), draw(2, seed=2)), lambda: check_attribution(model, draw(3))):
        with pytest.raises(UnsupportedLayer, match=f"'_*{name}.*', which block calls .* \"integrated-gradients\""):
            refuse()


def test_a_hand_written_relu_that_cannot_be_seen_does_not_add_up_and_is_refused():
    model = Calls(lambda h: (h - 0.5) * (h > 0.5))
    for refuse in (lambda: attribute_images(model, draw(3, seed=1), draw(2, seed=2)), lambda: check_attribution(model, draw(3))):
        with pytest.raises(UnsupportedLayer, match="missing from the heatmaps.*comparing features"):
            refuse()


class Branches(nn.Module):
    def __init__(self, bright, dark) -> None:
        super().__init__()
        self.bright, self.dark = bright, dark

    def forward(self, x):
        return (self.bright if x.mean() > 0.5 else self.dark)(x).flatten(1)[:, :3]


@pytest.mark.parametrize(
    ("bright", "dark"),
    [
        (nn.ReLU(), nn.Identity()),
        (nn.Identity(), nn.ReLU()),
        (nn.ReLU(), nn.MaxPool2d(2)),
        (nn.MaxPool2d(2), nn.Sequential(nn.MaxPool2d(3), nn.ReLU())),
    ],
)
def test_a_path_that_depends_on_the_input_is_refused(bright, dark):
    with pytest.raises(UnsupportedLayer):
        attribute_images(Branches(bright, dark), draw(2) * 0.1, draw(2) * 0.1 + 0.9)


class Folds(nn.Module):
    """Patches in the batch: image by image, or patch by patch, so that row n of a tensor is not image n."""

    def __init__(self, order) -> None:
        super().__init__()
        self.order, self.conv, self.head = order, nn.Conv2d(1, 2, 3), nn.Linear(2 * 49, 3)

    def forward(self, x):
        first = x if self.order == "image by image" else x.transpose(0, 1)
        each = self.head(self.conv(first.flatten(0, 1)[:, None]).relu().flatten(1)).view(*first.shape[:2], 3)
        return each.mean(1 if self.order == "image by image" else 0)


@pytest.mark.parametrize("order", ["image by image", "patch by patch"])
def test_a_model_that_folds_other_axes_into_the_batch_is_explained(order, build_seeded):
    """The reference has no batch at all: one image against one baseline."""
    model = build_seeded(lambda: Folds(order)).double()
    images, baselines = draw(4).double(), draw(3, seed=1).double()
    found = attribute_images(model, images, baselines, chunk=3)
    assert found.completeness_error.max() < 1e-9
    for row, image in enumerate(images):
        alone = [attribute_images(model, image[None], baseline[None], found.targets[row : row + 1]).heatmaps[0] for baseline in baselines]
        torch.testing.assert_close(found.heatmaps[row], torch.stack(alone).mean(0), atol=1e-10, rtol=1e-8)


def test_no_baselines(tiny_mlp):
    with pytest.raises(ModelError, match="at least one baseline"):
        attribute_images(tiny_mlp, draw(2, 1, 4), draw(0, 1, 4))


def test_a_check_compares_with_what_the_model_answers_to_whom_explains_nothing(build_seeded):
    class Divided(nn.Module):
        """Answers otherwise where gradients are taken."""

        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, 3))

        def forward(self, images):
            return self.network(images) * (1 if torch.is_grad_enabled() else 2)

    model, images = build_seeded(Divided).eval(), torch.rand(3, 3, 4, 4)
    with pytest.raises(UnsupportedLayer, match="explains the model only in part"):
        check_attribution(model, images)
    assert check_attribution(model.network, images) < 1e-5
