"""The pairs of source and end of a trained flow, on which reflow trains the next one."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fm_ext.solver.ode import ODESolver


def simulate_pairs(
    velocity_model: Callable[..., Tensor],
    sources: Iterable[Mapping[str, Tensor]],
    *,
    method: str = "midpoint",
    step_size: float | None = 0.02,
) -> Iterator[dict[str, Tensor]]:
    r"""Solves the ODE from every source and yields both ends: the pairs of one round of reflow.

    A flow that is trained on the pairs $(X_0, \mathrm{ODE}(X_0))$ is straighter than the one that made them, and its
    transport cost is not higher for any convex cost (Liu et al., arXiv 2209.03003, theorem 3.5). Train on them with the
    plain path, without a coupling: they are paired. An augmentation must be applied to both ends or to none.

    The model is in eval mode while it is asked, and then as it was. Give it the averaged weights,
    `trainer.ema_model`, and as many steps as it needs: the new flow learns the old one's errors. Guidance inside the
    model is frozen into the pairs. `fm_ext.data.write_pairs` stores what is yielded, and `pair_loader` reads it:

        write_pairs(simulate_pairs(model, sources), "pairs")

    Args:
        velocity_model: called as `v(x=x, t=t, **conditions)`.
        sources: batches, each a dictionary of `x_0` `(batch, ...)`, floating point, and of the conditions row by row,
            `label` for example, which the model gets and which are yielded too.
        method: of `ODESolver`.
        step_size: of the method; None for an adaptive one.

    Yields:
        Each batch with `x_1`, of `x_0`'s shape and dtype.

    Raises:
        ValueError: if a batch has no `x_0` or has an `x_1`.
        TypeError: if a batch is no dictionary of tensors, or `x_0` is not floating point.
    """
    solver = ODESolver(velocity_model)
    module = velocity_model if isinstance(velocity_model, torch.nn.Module) else None
    for batch in sources:
        _check(batch)
        conditions: dict[str, Any] = {name: x for name, x in batch.items() if name != "x_0"}
        training = module is not None and module.training
        try:
            if module is not None:
                module.eval()
            x_1 = solver.sample(batch["x_0"], step_size, method=method, **conditions)
        finally:
            if module is not None:
                module.train(training)
        yield {**batch, "x_1": x_1}


def _check(batch: Mapping[str, Tensor]) -> None:
    if not isinstance(batch, Mapping) or not all(isinstance(x, Tensor) for x in batch.values()):
        raise TypeError("`sources` must be batches, each a dictionary of tensors with x_0.")
    if "x_0" not in batch or "x_1" in batch:
        raise ValueError(
            f"`sources` must have x_0 in each batch, and no x_1, which is computed; got {sorted(batch)}."
        )
    if not batch["x_0"].is_floating_point():
        raise TypeError(
            f"`sources` must have x_0 in floating point; got {batch['x_0'].dtype}. Write `x_0.float()`."
        )
