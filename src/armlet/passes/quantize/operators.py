"""Operators of the exported graph by what quantisation does with them (`placement`)."""

from __future__ import annotations

from armlet.analysis.graph import aten

WEIGHTED = (
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.linear.default,
    aten.conv_transpose2d.input,
)
CLAMPS = (
    aten.relu.default,
    aten.relu_.default,
    aten.relu6.default,
    aten.hardtanh.default,
    aten.hardtanh_.default,
    aten.clamp.default,
)
TABLES = (
    aten.gelu.default,
    aten.silu.default,
    aten.silu_.default,
    aten.tanh.default,
    aten.sigmoid.default,
    aten.elu.default,
    aten.elu_.default,
    aten.leaky_relu.default,
    aten.leaky_relu_.default,
    aten.hardswish.default,
    aten.hardswish_.default,
    aten.hardsigmoid.default,
    aten.mish.default,
    aten.softplus.default,
)
MATRIX_PRODUCTS = (aten.matmul.default, aten.bmm.default)
PRODUCTS = (aten.mul.Tensor, aten.mul_.Tensor)
SHARING = (
    aten.max_pool2d.default,
    aten.upsample_nearest2d.vec,
    aten.flatten.using_ints,
    aten.view.default,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.contiguous.default,
    aten.clone.default,
    aten.cat.default,
    aten.stack.default,
    aten.select.int,
    aten.slice.Tensor,
)
