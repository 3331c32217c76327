"""Laws of simulated pairs on disk."""

from pathlib import Path

import datasets
import pytest
import torch
from accelerate import Accelerator
from flow_matching.path import CondOTProbPath
from torch import nn

from fm_ext.data import pair_loader, pairs, write_pairs
from fm_ext.models import MaskedVelocityModel
from fm_ext.path import MaskedProbPath
from fm_ext.solver import simulate_pairs


class Shift(nn.Module):
    """The flow x_1 = x_0 + 1 + label, if nothing is dropped out."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.9)

    def forward(self, x, t, label=None):
        shift = 1.0 if label is None else 1 + label.view(-1, *(1 for _ in x.shape[1:]))
        return self.dropout(torch.ones_like(x)) * shift


def batches(shape, count=3, rows=5):
    x = torch.arange(count * rows * torch.Size(shape).numel()).float().view(count, rows, *shape)
    return [{"x_0": x[i], "label": torch.full((rows,), i)} for i in range(count)]


@pytest.mark.parametrize("shape", [(2,), (3, 4), (1, 4, 4)], ids=str)
def test_what_is_stored_is_the_flows_both_ends(tmp_path: Path, shape, monkeypatch):
    monkeypatch.setattr(pairs, "SHARD", 8)
    model = Shift().train()
    assert write_pairs(simulate_pairs(model, batches(shape)), tmp_path / "pairs") == 15
    assert model.training and len(list((tmp_path / "pairs").glob("*"))) == 2
    loader = pair_loader(tmp_path / "pairs", batch_size=4, shuffle=False)
    rows = list(loader)
    assert [len(row["x_0"]) for row in rows] == [4, 4, 4, 3]
    whole = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    assert torch.equal(whole["x_0"], torch.cat([b["x_0"] for b in batches(shape)]))
    assert whole["x_1"].dtype == torch.float32 and whole["label"].dtype == torch.int64
    shift = (1 + whole["label"]).view(-1, *(1 for _ in shape)).expand_as(whole["x_0"])
    torch.testing.assert_close(whole["x_1"] - whole["x_0"], shift.float(), rtol=0, atol=1e-3)
    assert datasets.load_dataset(str(tmp_path / "pairs"), split="train").num_rows == 15


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)], ids=str)
def test_dtypes_are_kept(tmp_path: Path, shape, dtype):
    x_0 = torch.randn(6, *shape, dtype=torch.float64).to(dtype)
    small, mask = torch.arange(6, dtype=torch.int32), torch.rand(6, *shape) < 0.5

    class Still(nn.Module):
        def forward(self, x, t, label, mask):
            return torch.zeros_like(x)

    write_pairs(simulate_pairs(Still(), [{"x_0": x_0, "label": small, "mask": mask}]), tmp_path)
    (rows,) = pair_loader(tmp_path, batch_size=6, shuffle=False)
    stored = torch.float32 if dtype == torch.bfloat16 else dtype
    assert rows["x_0"].dtype == rows["x_1"].dtype == stored
    assert torch.equal(rows["x_0"], x_0.to(stored)) and torch.equal(rows["x_1"], x_0.to(stored))
    assert rows["label"].dtype == torch.int32 and torch.equal(rows["label"], small)
    assert rows["mask"].dtype == torch.bool and torch.equal(rows["mask"], mask)


def test_pairs_of_fills_keep_the_mask_and_what_is_known(tmp_path: Path):
    """Bit for bit at both ends, on disk, and between them; one Euler step along a pair is its end."""
    image, noise = torch.randn(6, 1, 4, 4), torch.randn(6, 1, 4, 4)
    mask = torch.rand(6, 1, 4, 4) < 0.5
    sources = [{"x_0": torch.where(mask, noise, image), "mask": mask, "label": torch.arange(6)}]
    filler = MaskedVelocityModel(Shift().eval(), pass_mask=False)
    write_pairs(simulate_pairs(filler, sources, step_size=0.25), tmp_path)
    (pair,) = pair_loader(tmp_path, batch_size=6, shuffle=False)
    assert torch.equal(pair["mask"], mask)
    for end in ("x_0", "x_1"):
        assert torch.equal(pair[end][~mask], image[~mask])
    assert not torch.equal(pair["x_0"][mask], pair["x_1"][mask])
    sample = MaskedProbPath(CondOTProbPath()).sample(
        x_0=pair["x_0"], x_1=pair["x_1"], t=torch.rand(6), mask=pair["mask"]
    )
    assert torch.equal(sample.x_t[~mask], image[~mask]) and sample.dx_t[~mask].eq(0).all()
    torch.testing.assert_close(pair["x_0"] + sample.dx_t, pair["x_1"])


def test_rows_stay_whole_and_the_order_is_the_seeds(tmp_path: Path):
    write_pairs(simulate_pairs(Shift(), batches((2,))), tmp_path)
    loader = pair_loader(tmp_path, batch_size=5, seed=3)
    first, second = list(loader), list(loader)
    for epoch in (first, second):
        x_0 = torch.cat([row["x_0"] for row in epoch])
        x_1 = torch.cat([row["x_1"] for row in epoch])
        label = torch.cat([row["label"] for row in epoch])
        torch.testing.assert_close(
            x_1 - x_0, (1.0 + label)[:, None].expand(-1, 2), rtol=0, atol=1e-3
        )
        assert x_0[:, 0].sort().values.tolist() == list(range(0, 30, 2))
    assert not torch.equal(first[0]["x_0"], second[0]["x_0"])
    again = pair_loader(tmp_path, batch_size=5, seed=3)
    again.sampler.set_epoch(1)
    assert all(torch.equal(a["x_0"], b["x_0"]) for a, b in zip(again, second, strict=True))


def test_rows_of_several_shapes_are_refused(tmp_path: Path):
    ragged = datasets.Dataset.from_dict({"x_0": [[1.0], [2.0, 3.0, 4.0]], "x_1": [[1.0]] * 2})
    ragged.to_parquet(tmp_path / "ragged.parquet")
    with pytest.raises(ValueError, match="`folder` must hold rows of one shape; got lists of"):
        next(iter(pair_loader(tmp_path, batch_size=2)))


def test_empty_batches_leave_nothing(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(pairs, "SHARD", 5)
    empty = {"x_0": torch.zeros(0, 2), "label": torch.zeros(0)}
    assert (
        write_pairs(simulate_pairs(Shift(), [empty, *batches((2,)), empty]), tmp_path / "some")
        == 15
    )
    assert len(list((tmp_path / "some").glob("*"))) == 3
    with pytest.raises(ValueError, match="`batches` must have a row"):
        write_pairs(simulate_pairs(Shift(), [empty]), tmp_path / "none")
    assert not list((tmp_path / "none").glob("*.parquet"))


def test_what_a_killed_run_leaves_is_not_taken_for_whole(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(pairs, "SHARD", 5)

    def killed():
        yield from batches((2,), count=2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pairs(simulate_pairs(Shift(), killed()), tmp_path)
    assert len(list(tmp_path.glob("*.parquet"))) == 2
    with pytest.raises(ValueError, match="holds unfinished-000: that process was killed"):
        pair_loader(tmp_path, batch_size=1)
    with pytest.raises(ValueError, match="`folder` must hold no pairs yet"):
        write_pairs(simulate_pairs(Shift(), batches((2,))), tmp_path)


def test_files_of_any_process_keep_others_out(tmp_path: Path):
    write_pairs(simulate_pairs(Shift(), batches((2,))), tmp_path)
    (file,) = tmp_path.glob("*")
    file.rename(tmp_path / "train-001-00000.parquet")
    with pytest.raises(ValueError, match="`folder` must hold no pairs yet"):
        write_pairs(simulate_pairs(Shift(), batches((2,))), tmp_path)
    assert len(list(tmp_path.glob("*"))) == 1


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ({"x": torch.zeros(5, 2), "label": torch.arange(5)}, ValueError, "must have x_0 in each"),
        ({"x_0": torch.zeros(5, 2)}, ValueError, r"same names in all; got \['x_0', 'x_1'\] after"),
        ({"x_0": torch.zeros(5, 2), "x_1": torch.zeros(5, 2)}, ValueError, "no x_1, which is comp"),
        (
            {"x_0": torch.zeros(5, 2), "label": torch.arange(4)},
            ValueError,
            r"`label` must hold one entry a sample, \(5, ...\); got \(4,\)",
        ),
        ({"x_0": torch.zeros(5, 2), "label": torch.tensor(1)}, ValueError, "as many rows of each"),
        ({"x_0": torch.zeros(5, 2).long(), "label": torch.arange(5)}, TypeError, "floating point"),
        ({"x_0": torch.zeros(5, 2), "label": 1}, TypeError, "dictionary of tensors"),
        (torch.zeros(5, 2), TypeError, "dictionary of tensors"),
    ],
)
def test_batches_that_cannot_be_stored_are_refused(tmp_path, batch, error, message, untyped):
    with pytest.raises(error, match=message):
        write_pairs(simulate_pairs(Shift(), [*batches((2,)), batch]), tmp_path)


def test_resuming_inside_an_epoch_gives_its_rest(tmp_path: Path):
    write_pairs(simulate_pairs(Shift(), batches((2,))), tmp_path)
    prepared = lambda: Accelerator(cpu=True).prepare(pair_loader(tmp_path, batch_size=4, seed=3))
    first, second = prepared(), prepared()
    history = [list(first), list(first)]
    second.set_epoch(1)
    rest = list(Accelerator(cpu=True).skip_first_batches(second, 1))
    assert len(history[1]) == 3
    for a, b in zip(history[1][1:], rest, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_bad_input(tmp_path: Path):
    with pytest.raises(ValueError, match="`batches` must have a row"):
        write_pairs(simulate_pairs(Shift(), []), tmp_path)
    with pytest.raises(ValueError, match="`folder` must hold pairs"):
        pair_loader(tmp_path, batch_size=1)
    write_pairs(simulate_pairs(Shift(), batches((2,))), tmp_path)
    with pytest.raises(ValueError, match="`folder` must hold no pairs yet"):
        write_pairs(simulate_pairs(Shift(), batches((2,))), tmp_path)
    with pytest.raises(ValueError, match=r"must not exceed the 15 rows of the split.*got 16"):
        pair_loader(tmp_path, batch_size=16)


def test_the_folder_may_be_in_the_home(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_pairs(simulate_pairs(Shift(), batches((2,))), tmp_path / "pairs")
    (rows,) = pair_loader("~/pairs", batch_size=15)
    assert len(rows["x_0"]) == 15
