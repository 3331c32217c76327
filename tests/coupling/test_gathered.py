"""Two real processes, started by torchrun, against one with the rows of both."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fm_ext.coupling import GatheredCoupling, NoisySource, OptimalTransport, SinkhornTransport


@pytest.fixture(scope="module")
def whole():
    generator = torch.Generator().manual_seed(0)
    return {
        "x_0": torch.randn(24, 1, 4, 4, generator=generator),
        "x_1": torch.randn(24, 1, 4, 4, generator=generator),
        "label": torch.randint(3, (24,), generator=generator),
        "mask": torch.rand(24, 1, 4, 4, generator=generator) < 0.5,
    }


@pytest.fixture(scope="module")
def shares(whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gathered")
    torch.save(whole, folder / "whole.pt")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += ["--master_port=0", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    run = subprocess.run(
        [*command, Path(__file__).parent / "gathered.py", folder],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_two_processes_get_what_one_gets(whole, shares):
    x_0, x_1 = whole["x_0"], whole["x_1"]
    first = lambda: torch.Generator().manual_seed(0)
    alone = {
        "plain": OptimalTransport()(x_0, x_1),
        "label": OptimalTransport()(x_0, x_1, label=whole["label"]),
        "condition": OptimalTransport()(x_0, x_1, label=whole["label"]),
        "mask": OptimalTransport(weight=0.0)(x_0, x_1, mask=whole["mask"]),
        "one mask": OptimalTransport(weight=0.0)(
            x_0, x_1, mask=whole["mask"][[0, 12]].repeat_interleave(12, dim=0)
        ),
        "own": (x_0, torch.arange(24)),
        "sinkhorn": SinkhornTransport()(x_0, x_1, generator=first()),
        "noise": NoisySource(0.1)(x_0, x_1, generator=first()),
    }
    for name, (paired, index) in alone.items():
        assert torch.equal(torch.cat([share[name][0] for share in shares]), paired), name
        assert torch.equal(torch.cat([share[name][1] for share in shares]), index), name
    assert any((share["plain"][1] // 12 != rank).any() for rank, share in enumerate(shares))


def test_batches_of_two_sizes_are_refused_on_both(shares):
    for share in shares:
        assert "`x_1` must have as many rows on every process; got 11 to 12" in share["error"]


def test_an_error_on_the_first_process_is_raised_on_both(shares):
    for share in shares:
        assert "`x_0`, `x_1` and `condition` must be finite" in share["not finite"]
        assert "must not require a gradient" in share["gradient"]
    assert shares[0]["other"] == shares[1]["other"]


def test_a_coupling_whose_result_cannot_be_shared_is_refused_on_both(shares):
    for share in shares:
        assert "`coupling` must return sources (24, 1, 4, 4) of torch.float32" in share["dtype"]
        assert "got (24, 1, 4, 4) of torch.float64" in share["dtype"]
        assert "`coupling` must return indices (24,) of torch.int64" in share["index dtype"]
        assert "got (23, 1, 4, 4) of torch.float32" in share["rows"]


def test_one_process_is_the_coupling_itself(whole):
    x_0, x_1 = whole["x_0"], whole["x_1"]
    gathered, plain = GatheredCoupling(OptimalTransport()), OptimalTransport()
    assert torch.equal(gathered(x_0, x_1)[1], plain(x_0, x_1)[1])
    assert GatheredCoupling(NoisySource(0.0)).source(x_0).equal(x_0)


def test_bad_input(untyped):
    with pytest.raises(TypeError, match=r"`coupling` must be a fm_ext\.coupling\.Coupling"):
        GatheredCoupling(torch.cdist)
    with pytest.raises(ValueError, match="`coupling` must not gather itself"):
        GatheredCoupling(GatheredCoupling(OptimalTransport()))
