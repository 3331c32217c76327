"""The cost of solvers: fm_ext's ODESolver beside upstream's, on the same networks with the same evaluations.

    OMP_NUM_THREADS=1 python examples/benchmarks/solver.py

The two take turns in one run, timed in seconds of CPU; "speed-up" is the median of the ratios of neighbouring calls,
above 1 where fm_ext is faster. "held" is the memory that the result of a call keeps alive, in units of the batch, for a
grid of 101 times of which the last state is returned. dopri5 takes other steps where the errors of samples differ:
both numbers of evaluations are given. The last table is `compile=True` beside the solver as it comes, after the first
call, which compiles; "eager" is how many of its evaluations Python ran, which must be none.
"""

import os
import statistics
import time

import torch
from flow_matching.solver import ODESolver as UpstreamODESolver

from fm_ext.models import MLP, UNet, UNetWrapper
from fm_ext.solver import ODESolver, uniform_grid

SMOKE = os.getenv("FM_EXT_SMOKE") == "1"
FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4")


class Counter(torch.nn.Module):
    """Counts its calls outside of compiled graphs; the arithmetic is the network's."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network, self.calls = network, 0

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling():
            self.calls += 1
        return self.network(x=x, t=t)


class Free(torch.nn.Module):
    """A velocity that costs nothing: what remains is the solver."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x


torch.manual_seed(0)
unet = UNet.preset(28, 1, 1)
torch.nn.init.normal_(unet.conv_out.weight, std=0.02)  # a new network's velocity is 0
CASES = {  # name: network, state, steps of fixed methods, rounds
    "no network, 256 x 2": (Free(), torch.randn(256, 2), 50, 20),
    "MLP, 256 x 2": (MLP(2, 128, activation=torch.nn.SiLU), torch.randn(256, 2), 50, 20),
    "no network, 16 x 3 x 64 x 64": (Free(), torch.randn(16, 3, 64, 64), 50, 10),
    "UNet.preset(28), 2 x 1 x 28 x 28": (UNetWrapper(unet), torch.randn(2, 1, 28, 28), 4, 5),
}
COMPILED = ("euler", "rk4")
if SMOKE:  # one compilation takes most of it
    COMPILED = ("euler",)
    CASES = {"MLP": (MLP(2, 8), torch.randn(8, 2), 4, 2)}

print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
for name, (network, x, steps, rounds) in CASES.items():
    print(
        f"\n{name:36}{'upstream':>12}{'fm_ext':>12}{'speed-up':>10}{'evaluations':>16}{'held':>14}"
    )
    for method in (*FIXED, "dopri5"):
        model = Counter(network.eval())
        solvers = UpstreamODESolver(model), ODESolver(model)
        step = {"method": method, "step_size": None if method == "dopri5" else 1 / steps}
        times: tuple[list[float], list[float]] = [], []
        calls = [0, 0]
        for number in range(rounds + 1):
            for i, solver in enumerate(solvers):
                model.calls, start = 0, time.process_time()
                solver.sample(x_init=x, **step)
                elapsed = time.process_time() - start
                calls[i] = model.calls
                if number > 0:  # after the warm-up
                    times[i].append(elapsed)
        ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
        grid, free = uniform_grid(100).float(), Free()
        held = [
            torch.as_tensor(
                kind(free).sample(x_init=x[:1], step_size=None, method=method, time_grid=grid)
            ).untyped_storage().nbytes() / x[:1].nbytes
            for kind in (UpstreamODESolver, ODESolver)
        ]  # fmt: skip
        medians = [f"{statistics.median(t) * 1e3:9.2f} ms" for t in times]
        row = f"{method:36}{medians[0]}{medians[1]}{ratio:10.2f}"
        print(f"{row}{f'{calls[0]} / {calls[1]}':>16}{f'{held[0]:.0f} N / {held[1]:.0f} N':>14}")

print(
    f"\n{'compile=True':36}{'plain':>12}{'compiled':>12}{'speed-up':>10}{'first call':>13}{'eager':>9}"
)
for name, (network, x, steps, rounds) in CASES.items():
    for method in COMPILED:
        model = Counter(network.eval())
        solvers = ODESolver(network), ODESolver(model, compile=True)
        times, first = ([], []), 0.0
        for number in range(rounds + 1):
            for i, solver in enumerate(solvers):
                start, wall = time.process_time(), time.perf_counter()
                with torch.inference_mode():
                    solver.sample(x, steps=steps, method=method)
                if number > 0:
                    times[i].append(time.process_time() - start)
                elif i:
                    first = time.perf_counter() - wall
        ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
        medians = [f"{statistics.median(t) * 1e3:9.2f} ms" for t in times]
        row = f"{f'{name}, {method}':36}{medians[0]}{medians[1]}{ratio:10.2f}"
        print(f"{row}{first:11.1f} s{model.calls:9}", flush=True)
