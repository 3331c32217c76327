"""Balance and entropy of generated classes."""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor


def class_balance(
    labels: Int64[Tensor, " batch"], reference: Float[Tensor, " classes"]
) -> Float64[Tensor, ""]:
    r"""Total variation between the frequencies of labels and those that they should have.

    $$\frac12 \sum_c |n_c / n - p_c|$$

    0 is best; it is the fraction of samples that would have to change class. **It depends on the sample size**: n
    labels drawn from $p$ itself give about $\sum_c \sqrt{p_c (1 - p_c) / 2 \pi n}$, which for ten even classes and
    10,000 labels is 0.012.

    Args:
        labels: predicted or given classes, 0, 1, ...
        reference: p, which sums to 1: the frequencies in the data, or `torch.full((10,), 0.1)`.

    Raises:
        TypeError: for labels that are not integers.
        ValueError: for no label, one outside the classes, or a reference that is not a distribution.
    """
    p = reference.to(labels.device, torch.float64)
    if not (p >= 0).all() or not torch.isclose(p.sum(), p.new_tensor(1.0), atol=1e-6):
        raise ValueError(
            f"`reference` must be probabilities that sum to 1; their sum is {p.sum().item():.6g} in "
            f"{reference.dtype}. Divide counts by their sum, in float32 at least."
        )
    return (_frequencies(labels, len(p)) - p).abs().sum() / 2


def class_entropy(labels: Int64[Tensor, " batch"], classes: int) -> Float64[Tensor, ""]:
    r"""Entropy of the frequencies of labels, $-\sum_c \frac{n_c}{n} \log \frac{n_c}{n}$, in nats.

    At most $\log$ `classes`, where all are equally frequent; 0 where all samples are of one class. Too small by about
    (classes - 1) / 2n (Miller and Madow).

    Args:
        labels: predicted or given classes, 0, 1, ...
        classes: their number.

    Raises:
        TypeError: for labels that are not integers.
        ValueError: for no label, or one outside the classes.
    """
    return torch.special.entr(_frequencies(labels, classes)).sum()


def _frequencies(labels: Tensor, classes: int) -> Tensor:
    if not len(labels):
        raise ValueError("`labels` must hold at least one label; it is empty.")
    if labels.is_floating_point():
        raise TypeError(
            f"`labels` must be integers; got {labels.dtype}. Take the argmax of logits."
        )
    low, high = labels.min().item(), labels.max().item()
    if low < 0 or high >= classes:
        raise ValueError(f"`labels` must lie in 0..{classes - 1}; got {low} to {high}.")
    return labels.bincount(minlength=classes).double() / len(labels)
