"""The nearest product of smaller matrices or kernels, in double precision.

Sources: Eckart and Young 1936 (singular values); Kim et al. 2016, "Compression of Deep Convolutional Neural Networks"
(Tucker-2), found by higher-order orthogonal iteration, De Lathauwer et al. 2000; Jaderberg et al. 2014, "Speeding up
Convolutional Neural Networks with Low Rank Expansions", scheme 2 (spatial); Zhang et al. 2016, "Accelerating Very Deep
Convolutional Networks", section 3.1 (nearest results instead of nearest weights).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_ITERATIONS = 10
"""Of the orthogonal iteration; it gains little after three."""


def spectrum(matrix: Array) -> Array:
    """Return the squared singular values of a matrix, the largest first; their sum is its squared norm."""
    values: Array = np.asarray(np.linalg.svd(matrix, compute_uv=False), np.float64) ** 2
    return values


def product(matrix: Array, rank: int, root: Array | None = None) -> tuple[Array, Array]:
    """Return [rank, n_in] and [n_out, rank] whose product, the second times the first, is nearest to [n_out, n_in].

    Both get the square roots of the singular values, so that their values span alike.

    Args:
        matrix: [n_out, n_in].
        rank: at most the smaller of the two.
        root: `root_of` what the matrix is multiplied with: its results on that are then what is near, not itself.
    """
    left, values, right = np.linalg.svd(matrix if root is None else matrix @ root, full_matrices=False)
    roots = np.sqrt(values[:rank])
    narrow = roots[:, None] * right[:rank]
    return narrow if root is None else np.linalg.solve(root.T, narrow.T).T, left[:, :rank] * roots


def root_of(moment: Array) -> Array:
    """Return the symmetric root of the mean product of all pairs of inputs, [n_in, n_in].

    The mean squared result of a matrix W on these inputs is the squared norm of W × root. A little is added to every
    direction, so that one that no sample has still counts.
    """
    values, vectors = np.linalg.eigh(moment)
    floor = 1e-4 * max(float(values.mean()), 1e-12)
    root: Array = (vectors * np.sqrt(values.clip(min=0) + floor)) @ vectors.T
    return root


def spatial_matrix(kernel: Array) -> Array:
    """Return a kernel [O, I, H, W] as the matrix [O × W, I × H], whose product is a column and then a row kernel."""
    outputs, inputs, height, width = kernel.shape
    return kernel.transpose(0, 3, 1, 2).reshape(outputs * width, inputs * height)


def spatial(kernel: Array, rank: int) -> tuple[Array, Array]:
    """Return [rank, I, H, 1] and [O, rank, 1, W]: convolved one after the other they are nearest to [O, I, H, W]."""
    outputs, inputs, height, width = kernel.shape
    column, row = product(spatial_matrix(kernel), rank)
    return (
        column.reshape(rank, inputs, height, 1),
        row.reshape(outputs, width, rank).transpose(0, 2, 1)[:, :, None, :],
    )


def unfolded(kernel: Array, dim: int) -> Array:
    """Return a kernel as a matrix with one dimension as its rows."""
    return np.moveaxis(kernel, dim, 0).reshape(kernel.shape[dim], -1)


def tucker2(kernel: Array, ranks: tuple[int, int]) -> tuple[Array, Array, Array]:
    """Return the factors of a kernel [A, B, H, W] over its first two dimensions.

    Args:
        kernel: of a convolution [O, I, H, W], or of a transposed one [I, O, H, W].
        ranks: of the two dimensions.

    Returns:
        [A, ranks[0]] and [B, ranks[1]] with orthonormal columns, and the core [ranks[0], ranks[1], H, W].
    """
    first, second = (_leading(unfolded(kernel, dim), rank) for dim, rank in enumerate(ranks))
    for _ in range(_ITERATIONS):
        first = _leading(unfolded(np.einsum("abhw,bs->ashw", kernel, second), 0), ranks[0])
        second = _leading(unfolded(np.einsum("abhw,ar->rbhw", kernel, first), 1), ranks[1])
    return first, second, np.einsum("abhw,ar,bs->rshw", kernel, first, second, optimize=True)


def _leading(matrix: Array, rank: int) -> Array:
    """Return the first left singular vectors of a matrix as columns."""
    return np.linalg.svd(matrix, full_matrices=False)[0][:, :rank]
