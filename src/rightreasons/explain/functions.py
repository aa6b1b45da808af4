"""What torch's functions are to the rescale rule: affine, elementwise, products, or compositions of those.

Names are torch's without the underscore that marks an in-place form. What stands nowhere here is refused by name.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Elementwise functions of one tensor; their other arguments may not depend on the image.
PIECEWISE_LINEAR = frozenset(
    "relu relu6 threshold _threshold hardtanh leaky_relu rrelu clamp clip clamp_min clamp_max abs __abs__ hardshrink softshrink".split()
)
CURVED = frozenset(
    "elu celu selu silu mish gelu hardswish hardsigmoid sigmoid tanh softplus softsign logsigmoid log_sigmoid tanhshrink sin cos "
    "exp expm1 exp2 log log1p log2 log10 erf sqrt rsqrt reciprocal square pow __pow__ __ipow__ __rpow__".split()
)
ELEMENTWISE = PIECEWISE_LINEAR | CURVED
PRODUCTS = frozenset("mul multiply __mul__ __rmul__ __imul__".split())
QUOTIENTS = frozenset("div divide true_divide __truediv__ __itruediv__ __div__ __rdiv__ __rtruediv__".split())
# Linear in each of two tensors. They are affine if only one of the two depends on the image.
BILINEAR = frozenset("matmul mm bmm mv dot tensordot __matmul__ __rmatmul__ einsum linear conv1d conv2d conv3d".split())
MAX_POOLS = frozenset("max_pool2d _max_pool2d max_pool2d_with_indices adaptive_max_pool2d adaptive_max_pool2d_with_indices".split())
SOFTMAXES = frozenset("softmax _softmax log_softmax".split())
# The arguments of each norm in order, so that they may be given by position or by name.
NORMS = {
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
    "instance_norm": ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"),
}
# These are affine in the image, so the plain gradient is exact.
AFFINE = frozenset(
    "interpolate upsample dropout dropout1d dropout2d feature_dropout alpha_dropout feature_alpha_dropout "
    "avg_pool1d avg_pool2d _avg_pool2d adaptive_avg_pool2d adaptive_avg_pool1d mean sum cumsum masked_fill where tril triu diagonal "
    "add sub subtract rsub neg negative positive __add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ __neg__ __pos__ "
    "flatten unflatten ravel view view_as reshape reshape_as permute transpose swapaxes swapdims movedim moveaxis squeeze unsqueeze t __get__ "
    "contiguous clone detach copy to float double half bfloat16 type type_as expand expand_as repeat repeat_interleave tile broadcast_to "
    "broadcast_tensors "
    "chunk split tensor_split split_with_sizes unsafe_chunk unsafe_split unbind cat concat concatenate stack hstack vstack dstack pad _pad "
    "constant_pad_nd __getitem__ __setitem__ narrow select index_select gather flip roll rot90 unfold fold pixel_shuffle pixel_unshuffle "
    "channel_shuffle native_channel_shuffle identity requires_grad real imag view_as_real view_as_complex "
    "fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fft fft_ifft fft_rfft fft_irfft".split()
)
# These are affine if only one operand depends on the image. Batch norm is one of them because the model is in eval mode.
SCALINGS = BILINEAR | frozenset("conv_transpose2d batch_norm".split())


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Softmax(scale Q K^T + mask) V, as torch's documentation of ``scaled_dot_product_attention`` defines it; ``dropout_p`` is 0."""
    if enable_gqa:
        key, value = (tensor.repeat_interleave(query.shape[-3] // tensor.shape[-3], -3) for tensor in (key, value))
    weights = (query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        allowed = torch.ones(weights.shape[-2:], dtype=torch.bool, device=weights.device).tril()
        weights = weights.masked_fill(~allowed, -math.inf)
    if attn_mask is not None:
        weights = weights.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else weights + attn_mask
    return weights.softmax(-1) @ value


def _glu(input: Tensor, dim: int = -1) -> Tensor:
    left, right = input.chunk(2, dim)
    return left * right.sigmoid()


def _prelu(input: Tensor, weight: Tensor) -> Tensor:
    if input.ndim > 1 and weight.numel() > 1:
        weight = weight.view(-1, *[1] * (input.ndim - 2))
    return input.relu() - weight * (-input).relu()


def _addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float | int = 1) -> Tensor:
    return input + value * (tensor1 * tensor2)


def _addcdiv(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float | int = 1) -> Tensor:
    return input + value * (tensor1 / tensor2)


def _lerp(input: Tensor, end: Tensor, weight: Tensor | float | int) -> Tensor:
    return input + weight * (end - input)


def _add_product(input: Tensor, left: Tensor, right: Tensor, *, beta: float | int = 1, alpha: float | int = 1) -> Tensor:
    """``addmm``, ``addmv`` and ``baddbmm``."""
    product = alpha * (left @ right)
    return product if beta == 0 else beta * input + product


def _rms_norm(input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    axes = tuple(range(-len(normalized_shape), 0))
    smallest = torch.finfo(input.dtype).eps if eps is None else eps
    out = input * (input.square().mean(axes, keepdim=True) + smallest).rsqrt()
    return out if weight is None else out * weight


def _var(input: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: float | int | None = None) -> Tensor:
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    axes = tuple(range(input.ndim)) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    lost = float(unbiased) if correction is None else correction
    squares = (input - input.mean(axes, keepdim=True)).square().sum(axes, keepdim=keepdim)
    return squares / (math.prod(input.shape[axis] for axis in axes) - lost)


def _std(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return input.var(*args, **kwargs).sqrt()


def _norm(input: Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False, out: None = None, dtype: torch.dtype | None = None) -> Tensor:
    """The p-th root of the sum of |z|^p, over ``dim`` or over all."""
    axes = tuple(range(input.ndim)) if dim is None else dim
    z = input if dtype is None else input.to(dtype)
    if p in (None, "fro", 2):
        return z.square().sum(axes, keepdim=keepdim).sqrt()
    if p == math.inf:
        return z.abs().amax(axes, keepdim=keepdim)
    return z.abs().sum(axes, keepdim=keepdim) if p == 1 else z.abs().pow(p).sum(axes, keepdim=keepdim).pow(1 / p)


def _vector_norm(x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    return _norm(x, ord, dim, keepdim, dtype=dtype)


def _linalg_norm(A: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Tensor:
    """``linalg.norm``: over two axes with an order it is a norm of matrices, which no rule covers."""
    axes = A.ndim if dim is None else 1 if isinstance(dim, int) else len(dim)
    if ord is not None and axes > 1:
        return torch.linalg.matrix_norm(A, ord, (-2, -1) if dim is None else dim, keepdim, dtype=dtype)
    return _norm(A, ord, dim, keepdim, dtype=dtype)


def _cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    left, right = (x / x.square().sum(dim, keepdim=True).sqrt().clamp_min(eps) for x in (x1, x2))
    return (left * right).sum(dim)


def _logsumexp(input: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    """z less log softmax(z), which is the same number at every place of the axes."""
    axes = [dim] if isinstance(dim, int) else list(dim)
    flat = input.movedim(axes, list(range(-len(axes), 0))).flatten(-len(axes))
    out = (flat - flat.log_softmax(-1)).mean(-1)
    for axis in sorted(axis % input.ndim for axis in axes) if keepdim else ():
        out = out.unsqueeze(axis)
    return out


def _bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out = torch.einsum("...i,oij,...j->...o", input1, weight, input2)
    return out if bias is None else out + bias


def _maximum(input: Tensor, other: Tensor) -> Tensor:
    return torch.stack(torch.broadcast_tensors(input, other), -1).amax(-1)


def _minimum(input: Tensor, other: Tensor) -> Tensor:
    return -torch.maximum(-input, -other)


def _amin(input: Tensor, dim: Any = (), keepdim: bool = False) -> Tensor:
    return -(-input).amax(dim, keepdim)


def _max_pool1d(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: int = 0, dilation: int = 1, ceil_mode: bool = False, **_: Any
) -> Tensor:
    flat = ((1, value) if isinstance(value, int) else (1, *value) for value in (kernel_size, stride or kernel_size, dilation))
    size, step, apart = flat
    pad = padding if isinstance(padding, int) else padding[0]
    return F.max_pool2d(input.unsqueeze(-2), size, step, (0, pad), apart, ceil_mode).squeeze(-2)


# Functions written out in others; each is called with the arguments of torch's own.
COMPOSED: dict[str, Callable[..., Tensor]] = {
    "scaled_dot_product_attention": _attention,
    "glu": _glu,
    "prelu": _prelu,
    "addcmul": _addcmul,
    "addcdiv": _addcdiv,
    "lerp": _lerp,
    "addmm": _add_product,
    "addmv": _add_product,
    "baddbmm": _add_product,
    "rms_norm": _rms_norm,
    "var": _var,
    "std": _std,
    "norm": _norm,
    "linalg_vector_norm": _vector_norm,
    "linalg_norm": _linalg_norm,
    "cosine_similarity": _cosine_similarity,
    "logsumexp": _logsumexp,
    "bilinear": _bilinear,
    "maximum": _maximum,
    "fmax": _maximum,
    "minimum": _minimum,
    "fmin": _minimum,
    "amin": _amin,
    "max_pool1d": _max_pool1d,
}
# Functions that torch writes in Python, in terms of those above.
WRITTEN_IN_PYTHON = frozenset("normalize local_response_norm lp_pool1d lp_pool2d multi_head_attention_forward softmin".split())


def body_of(function: Callable) -> Callable:
    """A function of torch.nn.functional as torch wrote it, without the question whether somebody intercepts it, which would ask again for ever."""
    quiet = {name: lambda *_: False for name in ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")}
    assert isinstance(function, types.FunctionType)
    copy = types.FunctionType(function.__code__, {**function.__globals__, **quiet}, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
