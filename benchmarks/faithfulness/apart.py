"""A convolutional network as rivals need it: one module for each call, batch norms folded into the convolutions before them, sums as modules."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class _Tracer(fx.Tracer):
    """Convolutions and batch norms of every kind are one step each: timm's ``Conv2dSame`` cannot be traced inside."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (nn.Conv2d, nn.BatchNorm2d)) or super().is_leaf_module(m, module_qualified_name)


def take_apart(network: nn.Module, add: Callable[[], nn.Module] | None = None) -> fx.GraphModule:
    """A copy in eval mode with the same outputs. ``add`` makes a module that sums over the last axis, in place of each addition of two maps."""
    whole = copy.deepcopy(network).eval().requires_grad_(False)
    traced = fx.GraphModule(whole, _Tracer().trace(whole))
    for number, node in enumerate(list(traced.graph.nodes)):
        if node.op == "call_module":
            _own_module(traced, node, f"own_{number}")
        elif add is not None and node.op == "call_function" and node.target in (operator.add, operator.iadd):
            traced.add_submodule(f"own_{number}", add())
            with traced.graph.inserting_before(node):
                stacked = traced.graph.call_function(torch.stack, (list(node.args), -1))
                node.replace_all_uses_with(traced.graph.call_module(f"own_{number}", (stacked,)))
            traced.graph.erase_node(node)
    traced.graph.lint()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced


def _own_module(traced: fx.GraphModule, node: fx.Node, name: str) -> None:
    """Gives this call a module of its own. A batch norm goes into its convolution, and leaves the activation that timm keeps inside it."""
    module = copy.deepcopy(traced.get_submodule(str(node.target)))
    if isinstance(module, nn.BatchNorm2d):
        before = node.args[0]
        assert isinstance(before, fx.Node)
        convolution = traced.get_submodule(str(before.target))
        assert isinstance(convolution, nn.Conv2d) and len(before.users) == 1, f"{node.target} does not follow a convolution alone"
        traced.add_submodule(f"{name}_fused", fuse_conv_bn_eval(convolution, module))
        before.target = f"{name}_fused"
        module = getattr(module, "act", nn.Identity())
    if hasattr(module, "inplace"):
        module.__dict__["inplace"] = False
    traced.add_submodule(name, module)
    node.target = name
