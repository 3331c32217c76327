"""Drawing many samples, so that neither batches nor processes change them."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather, gather_object, pad_across_processes
from torch import Tensor, nn
from tqdm.auto import tqdm

from fm_ext.sampling.count import EvaluationCounter
from fm_ext.sampling.images import to_uint8
from fm_ext.sampling.noise import indexed_noise
from fm_ext.sampling.samples import Samples


@torch.no_grad()
def draw_samples(
    sample: Callable[..., Tensor],
    count: int,
    shape: Sequence[int],
    *,
    batch_size: int,
    seed: int = 0,
    accelerator: Accelerator | None = None,
    network: nn.Module | None = None,
    **conditions: Tensor,
) -> Samples:
    """Draws `count` images; number i has noise i and condition i, whatever the batches and processes.

    The noise is `indexed_noise`, bit for bit the same; the images agree to rounding, for a network adds in another
    order in another batch. That needs a sampler that is a function of its arguments: noise of its own (an SDE), an
    adaptive step (one for the whole batch), or a network in training mode make images depend on their batch. Under
    `accelerate launch` each process draws its part, and all get all images.

        def sample(noise, label):
            return solver.sample(noise, step_size=0.05, method="midpoint", label=label)

        samples = draw_samples(sample, 10_000, (1, 28, 28), batch_size=500, label=torch.arange(10_000) % 10)

    Args:
        sample: noise, and the conditions by keyword, to images in about [-1, 1]; all tensors on the accelerator's
            device.
        count: number of images.
        shape: of one sample's noise.
        batch_size: of each process; the last batch may be smaller.
        seed: of the noise.
        accelerator: the processes and their device; None: a new one.
        network: whose evaluations are counted, by `EvaluationCounter`.
        conditions: tensors with one row for each of the `count` images, as `label`.

    Returns:
        All images as uint8 in the order of their numbers, with time and evaluations.

    Raises:
        ValueError: for a batch size below 1, fewer images than processes, a condition that is no tensor or of another
            length, a `network` that was never called, or images that are not `(batch, channel, height, width)` or not
            finite.
    """
    if count < 1 or batch_size < 1:
        raise ValueError(
            f"`count` and `batch_size` must be at least 1; got {count} and {batch_size}."
        )
    for name, rows in conditions.items():
        if not isinstance(rows, Tensor) or rows.ndim < 1 or len(rows) != count:
            got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
            raise ValueError(
                f"`{name}` must be a tensor with one row for each of {count} samples; got {got}. What is the same for "
                "all belongs into `sample`."
            )
    accelerator = Accelerator() if accelerator is None else accelerator
    rank, processes = accelerator.process_index, accelerator.num_processes
    if count < processes:
        raise ValueError(
            f"`count` must be at least one for each of {processes} processes; got {count}."
        )
    ends = [count * process // processes for process in range(processes + 1)]
    images, seconds = [], 0.0
    counter = nullcontext() if network is None else EvaluationCounter(network)
    quiet: Any = {} if accelerator.is_main_process else {"disable": True}
    progress = tqdm(total=ends[1] - ends[0], unit="image", **quiet)  # else left to TQDM_DISABLE
    with counter, progress:
        for start in range(ends[rank], ends[rank + 1], batch_size):
            part = slice(start, min(start + batch_size, ends[rank + 1]))
            noise = indexed_noise(range(part.start, part.stop), shape, seed=seed)
            noise = noise.to(accelerator.device)
            given = {name: rows[part].to(noise.device) for name, rows in conditions.items()}
            begin = time.perf_counter()
            batch = to_uint8(sample(noise, **given)).cpu()  # waits for the device
            seconds += time.perf_counter() - begin
            if batch.ndim != 4 or len(batch) != len(noise):
                raise ValueError(
                    f"`sample` must return images (batch, channel, height, width), {len(noise)} here; got "
                    f"{tuple(batch.shape)}."
                )
            images.append(batch)
            progress.update(len(batch))
    mine = torch.cat(images).to(accelerator.device)
    gathered: Any = gather(pad_across_processes(mine))
    parts = gathered.cpu().split(len(gathered) // processes)
    lengths = [end - start for start, end in pairwise(ends)]
    evaluations = 0
    if isinstance(counter, EvaluationCounter):
        evaluations = counter.evaluations
        if not counter.calls:
            raise ValueError(
                "`network` must be the module that `sample` calls; it was never called. Call it, and not its forward."
            )
    costs = gather_object([(seconds, evaluations)])
    return Samples(
        images=torch.cat([rows[:n] for rows, n in zip(parts, lengths, strict=True)]),
        label=conditions.get("label"),
        seconds=max(seconds for seconds, _ in costs),
        evaluations=None if network is None else sum(n for _, n in costs) / count,
    )
