"""Noise that belongs to the sample's number."""

import operator
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor


def indexed_noise(
    index: Iterable[int], shape: Sequence[int], *, seed: int = 0
) -> Float32[Tensor, " batch *dim"]:
    """Standard normal noise, each sample's a function of (seed, its index) and of nothing else.

    The generator is Philox (Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405) with the key (seed, index),
    so no two samples share a stream. A `torch.Generator` for each sample would not do: on the CPU it keeps 32 bits of
    its seed, and of 50,000 hashed seeds two would agree in one case of four. Drawn on the CPU whatever the device of
    the model, so that CPU and GPU start from the same noise.

    Args:
        index: numbers of the samples, from 0 to 2**64 - 1.
        shape: of one sample, `(channel, height, width)` for images.
        seed: any integer from 0 to 2**64 - 1; another seed, other noise for all.

    Returns:
        `(batch, *shape)`, float32, on the CPU.

    Raises:
        TypeError: for a seed or an index that is no integer.
        ValueError: for a seed or an index out of range, and an empty `shape`.
    """
    seed, numbers = operator.index(seed), [operator.index(number) for number in index]
    if not all(0 <= number < 2**64 for number in (seed, *numbers)):
        raise ValueError(
            f"`seed` and the numbers in `index` must lie in 0..2**64 - 1; got seed {seed} and indices from "
            f"{min(numbers, default=None)} to {max(numbers, default=None)}."
        )
    if not len(shape):
        raise ValueError("`shape` must have at least one axis; got ().")
    noise = np.empty((len(numbers), *shape), np.float32)
    for row, number in enumerate(numbers):
        stream = np.random.Philox(key=np.array([seed, number], np.uint64))
        np.random.Generator(stream).standard_normal(dtype=np.float32, out=noise[row])
    return torch.from_numpy(noise)
