"""Time and memory of `sample`: upstream, torchcfm, fm_ext, interleaved in one process.

    python examples/benchmarks/path.py

Prints the median time, the median over rounds of (upstream's time / this one's), page faults a call, and the bytes
that a call allocates, in total and at its peak, in units of one batch N. Then the time of ours in blocks of calls,
in units of the bare kernels of the same result. Ratios of one interleaved run hold to about
10 %; times do not. Where calls fault, the time is the operating system's: an allocator that keeps its heap shows the
arithmetic,

    MALLOC_TRIM_THRESHOLD_=1073741824 MALLOC_MMAP_THRESHOLD_=1073741824 python examples/benchmarks/path.py
"""

import os
import resource
import statistics
import time
from collections.abc import Callable

import flow_matching.path as upstream
import flow_matching.path.scheduler as upstream_schedulers
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fm_ext.path import AffineProbPath, CondOTProbPath, MaskedProbPath
from fm_ext.path.scheduler import CosineScheduler, SigmoidScheduler, VPScheduler

SIZES = {(128, 2): 400, (128, 3, 32, 32): 200, (64, 3, 256, 256): 15}  # shape: rounds
if os.getenv("FM_EXT_SMOKE") == "1":
    SIZES = {(8, 3, 8, 8): 3}

CALLS: dict[str, Callable[..., object]] = {
    "upstream CondOT": upstream.CondOTProbPath().sample,
    "fm_ext CondOT": CondOTProbPath().sample,
    "upstream Cosine": upstream.AffineProbPath(upstream_schedulers.CosineScheduler()).sample,
    "fm_ext Cosine": AffineProbPath(CosineScheduler()).sample,
    "upstream Sigmoid": upstream.AffineProbPath(SigmoidScheduler()).sample,
    "fm_ext Sigmoid": AffineProbPath(SigmoidScheduler()).sample,
}
try:
    from torchcfm.conditional_flow_matching import ConditionalFlowMatcher
except ImportError:
    print("torchcfm is not installed: left out")
else:
    CALLS["torchcfm CondOT"] = ConditionalFlowMatcher(0.0).sample_location_and_conditional_flow


class Allocations(TorchDispatchMode):
    """Sees every operation, and so every new storage while it lives."""

    def __init__(self, *inputs: torch.Tensor):
        super().__init__()
        self.known = {x.untyped_storage()._cdata for x in inputs}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.total = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.alive = {key: pair for key, pair in self.alive.items() if not pair[0].expired()}
        for x in tree_leaves(result):
            storage = x.untyped_storage() if isinstance(x, torch.Tensor) else None
            if storage is None or storage._cdata in self.known | self.alive.keys():
                continue
            self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
            self.total += storage.nbytes()
        self.peak = max(self.peak, sum(nbytes for _, nbytes in self.alive.values()))
        return result


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
for shape, rounds in SIZES.items():
    x_0, x_1, t = torch.randn(shape), torch.randn(shape), torch.rand(shape[0])
    times: dict[str, list[float]] = {name: [] for name in CALLS}
    pages = dict.fromkeys(CALLS, 0)
    for number in range(rounds + 2):
        for name, call in CALLS.items():
            before, start = faults(), time.perf_counter()
            call(x_0, x_1, t)
            elapsed, after = time.perf_counter() - start, faults()
            if number >= 2:  # after the warm-up
                times[name].append(elapsed)
                pages[name] += after - before
    print(
        f"\n{'x'.join(map(str, shape)):17} {'time':>11} {'speed-up':>10} {'faults':>8} {'bytes':>9} {'peak':>9}"
    )
    for name, call in CALLS.items():
        unit = times[f"upstream {name.split()[1]}"]
        ratio = statistics.median(a / b for a, b in zip(unit, times[name], strict=True))
        with Allocations(x_0, x_1, t) as allocations:
            call(x_0, x_1, t)
        total, peak = allocations.total / x_1.nbytes, allocations.peak / x_1.nbytes
        median = statistics.median(times[name]) * 1e3
        print(
            f"{name:17} {median:8.3f} ms {ratio:10.2f} {pages[name] / rounds:8.0f} {total:7.2f} N {peak:7.2f} N"
        )


def against_bare_kernels(shape: tuple[int, ...], calls: int) -> None:
    """Prints the processor time of `sample`, in blocks of calls, as multiples of its arithmetic's alone."""
    x_0, x_1, t = torch.randn(shape), torch.randn(shape), torch.rand(shape[0])
    wide = t.view(-1, *(1 for _ in shape[1:]))
    mask = torch.rand(shape[0], 1, *shape[2:]) < 0.5
    cosine, vp = AffineProbPath(CosineScheduler()), AffineProbPath(VPScheduler())
    straight, masked = CondOTProbPath(), MaskedProbPath(CondOTProbPath())

    def lerp_sub() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.lerp(x_0, x_1, wide), x_1 - x_0

    def mul_addcmul() -> tuple[
        torch.Tensor, torch.Tensor
    ]:  # what a schedule costs is counted as ours
        return (wide * x_0).addcmul_(wide, x_1), (wide * x_0).addcmul_(wide, x_1)

    def lerp_sub_where() -> tuple[torch.Tensor, torch.Tensor]:
        x_t, dx_t = lerp_sub()
        return torch.where(mask, x_t, x_1), torch.where(mask, dx_t, 0)

    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "CondOT": (lerp_sub, lambda: straight.sample(x_0, x_1, t)),
        "Cosine": (mul_addcmul, lambda: cosine.sample(x_0, x_1, t)),
        "VP": (mul_addcmul, lambda: vp.sample(x_0, x_1, t)),
        "masked CondOT": (lerp_sub_where, lambda: masked.sample(x_0, x_1, t, mask=mask)),
    }
    for name, pair in pairs.items():
        ratios: list[float] = []
        for _ in range(9):
            spent: list[float] = []
            for call in pair:
                call()
                start = time.process_time()
                for _ in range(calls):
                    call()
                spent.append(time.process_time() - start)
            ratios.append(spent[1] / spent[0])
        print(f"{'x'.join(map(str, shape)):17} {name:14} {statistics.median(ratios):6.2f}")


print("\nin blocks of calls, times the bare kernels of the same result (median over blocks)")
for shape, rounds in SIZES.items():
    against_bare_kernels(shape, max(2, rounds // 5))
