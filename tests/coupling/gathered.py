"""The work of two processes, written to OUTPUT_DIR/<rank>.pt; started with torchrun by test_gathered.py."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from fm_ext.coupling import (
    Coupling,
    GatheredCoupling,
    NoisySource,
    OptimalTransport,
    SinkhornTransport,
)


class Own(Coupling):
    def __init__(self, dtype, index_dtype, rows=slice(None)):
        self.dtype, self.index_dtype, self.rows = dtype, index_dtype, rows

    def __call__(self, x_0, x_1, **words):
        index = torch.arange(len(x_0), dtype=self.index_dtype)[self.rows]
        return x_0[self.rows].to(self.dtype), index


dist.init_process_group("gloo")
rank = dist.get_rank()
whole = torch.load(Path(sys.argv[1]) / "whole.pt")
share = {name: value.chunk(2)[rank].clone() for name, value in whole.items()}
x_0, x_1 = share.pop("x_0"), share.pop("x_1")
result = {
    "plain": GatheredCoupling(OptimalTransport())(x_0, x_1),
    "label": GatheredCoupling(OptimalTransport())(x_0, x_1, label=share["label"]),
    "condition": GatheredCoupling(OptimalTransport())(
        x_0, x_1, condition=share["label"].float()[:, None]
    ),
    "mask": GatheredCoupling(OptimalTransport(weight=0.0))(x_0, x_1, mask=share["mask"]),
    "one mask": GatheredCoupling(OptimalTransport(weight=0.0))(x_0, x_1, mask=share["mask"][:1]),
    "own": GatheredCoupling(Own(torch.float32, torch.int64))(x_0, x_1),
}
for name, coupling in {"sinkhorn": SinkhornTransport(), "noise": NoisySource(0.1)}.items():
    generator = torch.Generator().manual_seed(rank)
    result[name] = GatheredCoupling(coupling)(x_0, x_1, generator=generator)
try:
    GatheredCoupling(OptimalTransport())(x_0[rank:], x_1[rank:])
except ValueError as error:
    result["error"] = str(error)
try:  # the first process only finds out
    GatheredCoupling(OptimalTransport())(x_0 * float("nan"), x_1)
except ValueError as error:
    result["not finite"] = str(error)
try:
    GatheredCoupling(OptimalTransport())(x_0.long(), x_1.long())
except Exception as error:
    result["other"] = f"{type(error).__name__}: {error}"
for name, own in {
    "dtype": Own(torch.float64, torch.int64),
    "index dtype": Own(torch.float32, torch.int32),
    "rows": Own(torch.float32, torch.int64, slice(1, None)),
}.items():
    try:
        GatheredCoupling(own)(x_0, x_1)
    except ValueError as error:
        result[name] = str(error)
try:
    GatheredCoupling(OptimalTransport())(x_0.clone().requires_grad_(), x_1)
except ValueError as error:
    result["gradient"] = str(error)
torch.save(result, Path(sys.argv[1]) / f"{rank}.pt")
dist.destroy_process_group()
