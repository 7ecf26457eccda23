"""Convolutions of pictures that are fast on CPUs too.

The gradients of XLA's own convolutions are some twenty times slower within loops on CPUs. There a convolution is a
product of patches and kernel instead, as long as the patches are not too large; elsewhere it is XLA's.
"""

import jax
import jax.numpy as jnp
import numpy as np

LARGEST_PATCHES = 2**26
"""Largest size of the patches of a batch, in numbers (256 MB), that is laid out in memory."""


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0) -> jax.Array:
    """`x[n, height, width, c]`, with `padding` zeros around, under `kernel[k, k, c, features]` (not flipped)."""
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    size = kernel.shape[0]
    height, width = ((side - size) // stride + 1 for side in x.shape[1:3])
    patches = x.shape[0] * height * width * size * size * x.shape[-1]
    if jax.default_backend() != "cpu" or patches > LARGEST_PATCHES:
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "VALID", dimension_numbers=dimensions)
    if size % stride == 0:
        # Cells of stride x stride pixels become channels of a picture whose kernel has stride 1: far fewer slices.
        n, *_, channels = x.shape
        cells = size // stride
        rows, columns = height + cells - 1, width + cells - 1
        x = x[:, : rows * stride, : columns * stride].reshape(n, rows, stride, columns, stride, channels)
        x = x.swapaxes(2, 3).reshape(n, rows, columns, -1)
        kernel = kernel.reshape(cells, stride, cells, stride, channels, -1)
        kernel = kernel.swapaxes(1, 2).reshape(cells, cells, x.shape[-1], -1)
        size, stride = cells, 1
    last_row, last_column = (height - 1) * stride + 1, (width - 1) * stride + 1
    slices = [x[:, i : i + last_row : stride, j : j + last_column : stride] for i in range(size) for j in range(size)]
    return jnp.concatenate(slices, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def convolve_transposed(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The transposed convolution to pictures `stride` times as large, of an odd kernel whose middle is on the pixel.

    `x[n, height, width, c]` and `kernel[k, k, c, features]` -> `[n, stride * height, stride * width, features]`: `x`
    with `stride - 1` zeros after each pixel, under the kernel. (PyTorch's of padding k // 2 and output padding
    stride - 1, whose kernels are stored turned by 180 degrees.)

    Nothing is multiplied by those zeros. Each of the stride x stride places of an output cell has a small kernel of its
    own, and together they are one convolution of `x` (Shi et al. 2016, "sub-pixel").
    """
    size, middle = kernel.shape[0], kernel.shape[0] // 2
    before, after = middle // stride, (size - 1 - middle + stride - 1) // stride
    # Place a of a cell sees the kernel's tap stride * q + middle - a in the pixel q cells on, if there is such a tap.
    taps = stride * np.arange(-before, after + 1)[:, None] + middle - np.arange(stride)
    taps = np.where((taps >= 0) & (taps < size), taps, size)  # else the zeros that are appended
    width = len(taps)
    padded = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))
    cells = padded[taps[:, None, :, None], taps[None, :, None, :]]  # [width, width, stride, stride, c, features]
    cells = cells.transpose(0, 1, 4, 2, 3, 5).reshape(width, width, x.shape[-1], -1)
    x = jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    y = convolve(x, cells)
    n, rows, columns, _ = y.shape
    y = y.reshape(n, rows, columns, stride, stride, -1).swapaxes(2, 3)
    return y.reshape(n, rows * stride, columns * stride, -1)
