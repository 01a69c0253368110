"""The activation functions that model families offer, by the names that users write."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from armlet.registry import Registry

ACTIVATIONS: Registry[Callable[[], nn.Module]] = Registry("activation")
"""Makes a new module for each use, so that no two layers share one."""

ACTIVATIONS.register("relu")(nn.ReLU)
ACTIVATIONS.register("relu6")(nn.ReLU6)
ACTIVATIONS.register("leaky_relu")(nn.LeakyReLU)
ACTIVATIONS.register("hard_swish")(nn.Hardswish)
ACTIVATIONS.register("silu")(nn.SiLU)
ACTIVATIONS.register("gelu")(nn.GELU)
ACTIVATIONS.register("tanh")(nn.Tanh)
ACTIVATIONS.register("sigmoid")(nn.Sigmoid)
ACTIVATIONS.register("prelu")(nn.PReLU)
ACTIVATIONS.register("elu")(nn.ELU)
ACTIVATIONS.register("mish")(nn.Mish)
ACTIVATIONS.register("hard_sigmoid")(nn.Hardsigmoid)
