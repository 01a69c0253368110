"""Which rule follows channels through which operator of the exported graph."""

from __future__ import annotations

from collections.abc import Mapping

from armlet.analysis.groups import layers, moves
from armlet.analysis.groups.tracker import Rule

_OF_ATEN: tuple[tuple[Rule, str], ...] = (
    (layers.conv, "conv1d.default conv1d.padding conv2d.default conv2d.padding"),
    (layers.conv_transpose, "conv_transpose1d.default conv_transpose2d.input"),
    (layers.linear, "linear.default"),
    (layers.embedding, "embedding.default"),
    (layers.channel_norm, "batch_norm.default instance_norm.default"),
    (layers.layer_norm, "layer_norm.default rms_norm.default"),
    (layers.prelu, "prelu.default"),
    (
        moves.elementwise,
        "add.Tensor add_.Tensor sub.Tensor mul.Tensor mul_.Tensor div.Tensor maximum.default minimum.default "
        "where.self where.ScalarOther where.ScalarSelf masked_fill.Scalar masked_fill.Tensor "
        "gt.Tensor ge.Tensor lt.Tensor le.Tensor eq.Tensor ne.Tensor "
        "bitwise_and.Tensor bitwise_or.Tensor logical_and.default logical_or.default",
    ),
    (moves.product, "matmul.default bmm.default"),
    (moves.over_one_dim, "softmax.int log_softmax.int"),
    (moves.cat, "cat.default"),
    (moves.stack, "stack.default"),
    (moves.select, "select.int"),
    (moves.split, "chunk.default split.Tensor split_with_sizes.default"),
    (moves.unbind, "unbind.int"),
    (moves.glu, "glu.default"),
    (moves.pad, "pad.default constant_pad_nd.default"),
    (moves.unsqueeze, "unsqueeze.default"),
    (
        moves.pool,
        "max_pool1d.default max_pool2d.default avg_pool1d.default avg_pool2d.default adaptive_avg_pool1d.default "
        "adaptive_avg_pool2d.default adaptive_max_pool2d.default upsample_nearest2d.vec upsample_bilinear2d.vec",
    ),
    (moves.reduce, "mean.dim sum.dim_IntList amax.default amin.default"),
    (moves.cut, "slice.Tensor"),
    (moves.permute, "permute.default transpose.int"),
    (
        moves.reshape,
        "flatten.using_ints unflatten.int view.default reshape.default squeeze.dim squeeze.dims",
    ),
    (
        moves.keep,
        "relu.default relu_.default relu6.default hardtanh.default hardtanh_.default clamp.default "
        "leaky_relu.default leaky_relu_.default elu.default elu_.default hardswish.default hardswish_.default "
        "hardsigmoid.default silu.default silu_.default mish.default mish_.default gelu.default tanh.default "
        "sigmoid.default softplus.default exp.default abs.default neg.default sqrt.default square.default "
        "rsqrt.default reciprocal.default log.default log1p.default pow.Tensor_Scalar erf.default selu.default "
        "celu.default log_sigmoid.default rsub.Scalar gt.Scalar ge.Scalar lt.Scalar le.Scalar eq.Scalar ne.Scalar "
        "bitwise_not.default logical_not.default contiguous.default clone.default to.dtype alias.default "
        "detach.default",
    ),
    (moves.nothing, "_assert_tensor_metadata.default"),
)
RULES: Mapping[str, Rule] = {
    **{f"aten.{operator}": rule for rule, operators in _OF_ATEN for operator in operators.split()},
    "armlet.recurrent.default": layers.recurrent,
    "<built-in function getitem>": layers.result,
}
