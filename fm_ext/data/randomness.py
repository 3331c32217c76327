"""Random numbers without a state: each is a function of where it is used."""

import numpy as np
from jaxtyping import Float64, Int64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform(
    seed: int, epoch: Int64[np.ndarray, " batch"], row: Int64[np.ndarray, " batch"], *, draw: int
) -> Float64[np.ndarray, " batch"]:
    """Uniform numbers in [0, 1) that depend on (seed, epoch, row, draw) and on nothing else.

    So an augmentation is the same in the main process and in a worker, alone and in a batch,
    before and after a resume. The four words go one after the other through the output function
    of SplitMix64 (Steele, Lea and Flood 2014, https://doi.org/10.1145/2660193.2660195, Figure 16).

    Args:
        seed: any non-negative integer.
        epoch: pass over the data, from 0.
        row: row of the data set, or position in a stream.
        draw: which of the independent numbers of that row: 0, 1, 2, ...
    """
    state = np.zeros(1, np.uint64)
    for word in (np.uint64(seed % 2**64), epoch, row, np.uint64(draw)):
        state = (state ^ np.asarray(word).astype(np.uint64)) + _GOLDEN
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)) * 2.0**-53
