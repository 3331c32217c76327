import copy
import errno
import io
import json
import os
import resource
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fm_ext.training import (
    CheckpointError,
    NonFiniteLossError,
    latest_checkpoint,
    load_weights,
)
from fm_ext.training.checkpoint import find_checkpoint, read_manifest


def make_net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Dropout(0.2), nn.Linear(8, 3)
    )


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_when_checkpoints_are_written_and_which_are_kept(make_trainer, tmp_path) -> None:
    make_trainer(steps=7, save_every=2, keep=2, output_dir=tmp_path).fit()
    assert names(tmp_path) == ["step_00000006", "step_00000007"]
    assert latest_checkpoint(tmp_path) == tmp_path / "step_00000007"


def test_no_folder_no_files(make_trainer, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_trainer(save_every=2).fit()
    assert names(tmp_path) == []
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "none") is None


def test_the_manifest_is_readable(make_trainer, tmp_path) -> None:
    make_trainer(steps=7, output_dir=str(tmp_path / "run")).fit()
    checkpoint = tmp_path / "run" / "step_00000007"
    manifest = json.loads((checkpoint / "trainer.json").read_text())
    assert (manifest["step"], manifest["epoch"], manifest["batch"]) == (
        7,
        1,
        1,
    )  # 6 batches an epoch
    assert manifest["config"]["lr"] == 0.01
    assert manifest["run"]["processes"] == 1
    assert manifest["run"]["batches_per_epoch"] == 6
    assert manifest["versions"]["torch"] == torch.__version__
    assert set(manifest["files"]) == {*names(checkpoint)} - {"trainer.json"}


def test_weights_load_without_a_trainer(make_trainer, tmp_path, net) -> None:
    trainer = make_trainer(steps=5, save_every=3, output_dir=tmp_path)
    trainer.fit()
    for ema, expected in ((True, trainer.ema_model), (False, trainer.model)):
        name = "ema.safetensors" if ema else "model.safetensors"
        for path in (tmp_path, tmp_path / "step_00000005", tmp_path / "step_00000005" / name):
            for p in net.parameters():
                p.data.fill_(7)
            load_weights(path, net, ema=ema)
            torch.testing.assert_close(net.state_dict(), expected.state_dict(), rtol=0, atol=0)


def test_compiled_models_write_and_load_plain_names(make_trainer, tmp_path, net) -> None:
    fresh = copy.deepcopy(net)
    make_trainer(model=torch.compile(net, backend="eager"), output_dir=tmp_path).fit()
    load_weights(tmp_path, torch.compile(fresh, backend="eager"), ema=False)
    torch.testing.assert_close(fresh.state_dict(), net.state_dict(), rtol=0, atol=0)
    resumed = make_trainer(model=torch.compile(fresh, backend="eager"), output_dir=tmp_path)
    resumed.fit()
    assert resumed.step == 10


class Tied(nn.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        self.first = nn.Linear(3, width, bias=False)
        self.second = nn.Linear(3, width, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x) + self.second(x)


def test_shared_parameters(make_trainer, tmp_path) -> None:
    trainer = make_trainer(
        model=Tied(), loss=lambda m, b: m(b[0]).square().mean(), output_dir=tmp_path
    )
    trainer.fit()
    fresh = Tied()
    load_weights(tmp_path, fresh)
    assert torch.equal(fresh.second.weight, trainer.ema_model.first.weight)


def test_weights_that_do_not_fit(make_trainer, tmp_path, net) -> None:
    make_trainer(ema_decay=None, output_dir=tmp_path).fit()
    with pytest.raises(FileNotFoundError, match=r"ema.safetensors does not exist.*ema=False"):
        load_weights(tmp_path, net)
    with pytest.raises(FileNotFoundError, match="`path` holds no weights"):
        load_weights(tmp_path / "elsewhere", net)
    wide = nn.Sequential(
        nn.Linear(3, 9), nn.BatchNorm1d(9), nn.SiLU(), nn.Dropout(), nn.Linear(9, 3)
    )
    before = [p.clone() for p in wide.parameters()]
    with pytest.raises(
        ValueError,
        match=r"`model` must be built like .* 0.bias has shape \(8,\) in the file and \(9,\)",
    ):
        load_weights(tmp_path, wide, ema=False)
    assert all(torch.equal(a, b) for a, b in zip(before, wide.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"4.weight is not in `model`"):
        load_weights(tmp_path, net[:4], ema=False)
    with pytest.raises(ValueError, match=r"5.weight is missing in the file"):
        load_weights(tmp_path, nn.Sequential(*net, nn.Linear(3, 3)), ema=False)


@pytest.mark.parametrize("damage", ["truncated", "missing file", "no manifest", "bad manifest"])
def test_a_damaged_checkpoint_is_passed_over_with_a_report(make_trainer, tmp_path, damage) -> None:
    make_trainer(steps=6, save_every=3, output_dir=tmp_path).fit()
    newest = tmp_path / "step_00000006"
    if damage == "truncated":
        os.truncate(newest / "optimizer.bin", 100)
    elif damage == "missing file":
        (newest / "ema.safetensors").unlink()
    elif damage == "no manifest":
        (newest / "trainer.json").unlink()
    else:
        (newest / "trainer.json").write_text('{"step": 6')
    assert read_manifest(newest) is None
    assert latest_checkpoint(tmp_path) == tmp_path / "step_00000003"
    trainer = make_trainer(steps=6, save_every=3, output_dir=tmp_path)
    with pytest.warns(
        UserWarning, match=r"ignored .*step_00000006: it is not a complete checkpoint"
    ):
        trainer.fit()
    assert read_manifest(newest), "written anew"


def test_leftovers_of_killed_saves_are_deleted(make_trainer, tmp_path) -> None:
    trainer = make_trainer(steps=3, output_dir=tmp_path)
    trainer.fit()
    shutil.copytree(tmp_path / "step_00000003", tmp_path / ".step_00000004.partial")
    (tmp_path / "notes").mkdir()
    path, manifest = find_checkpoint(tmp_path, trainer.accelerator)
    assert path == tmp_path / "step_00000003"
    assert manifest["step"] == 3
    assert names(tmp_path) == ["notes", "step_00000003"]


def test_all_is_on_the_disk_before_the_checkpoint_appears(
    make_trainer, tmp_path, monkeypatch
) -> None:
    events = []
    replace = os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: events.append(Path(f"/proc/self/fd/{fd}").readlink())
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), replace(a, b)))
    make_trainer(steps=3, output_dir=tmp_path).fit()
    at = events.index("rename")
    partial = tmp_path / ".step_00000003.partial"
    written = {partial / name for name in names(tmp_path / "step_00000003")}
    assert {*events[:at]} == {*written, partial}
    assert events[at - 1] == partial and events[at + 1] == tmp_path


def test_objects_registered_with_accelerate_are_saved_too(make_trainer, tmp_path) -> None:
    """So a loss with a state of its own is resumed exactly."""
    values = []
    for steps in (3, 5):
        trainer = make_trainer(steps=steps, output_dir=tmp_path, decay="constant")
        counter = nn.Linear(1, 1)
        trainer.accelerator.register_for_checkpointing(counter)
        trainer.fit()
        values.append(counter.weight.item())
    assert values[0] == values[1]


class Views(nn.Module):
    """State that safetensors refuses: buffers that view parts of a storage, weights that lie in one flat buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        table, flat = torch.arange(12.0).view(4, 3), torch.randn(18)
        self.register_buffer("first", table[:2])
        self.register_buffer("last", table[1:])
        self.columns = nn.Parameter(flat[:9].view(3, 3).t())
        self.rows = nn.Parameter(flat[9:].view(3, 3))
        self.register_buffer("top", self.linear.weight.data[:1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) @ self.columns + x @ self.rows + self.first.sum()


class TiedByStorage(nn.Module):
    """A buffer that is a parameter's memory, and two parameters that are one memory."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("ref", self.linear.weight.data)
        self.bias = nn.Parameter(self.linear.bias.data)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) + x @ self.ref


def simple(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    return (model(batch[0]) - torch.randn_like(batch[0])).square().mean()


@pytest.mark.parametrize("build", [Tied, Views, TiedByStorage])
def test_memory_that_is_shared_is_saved_and_resumed(
    make_trainer, everything, tmp_path, build
) -> None:
    def make(folder: Path, **settings) -> object:
        torch.manual_seed(1)
        loss = simple if build is not Tied else lambda m, b: m(b[0]).square().mean()
        return make_trainer(model=build(), loss=loss, output_dir=folder, **settings)

    whole = make(tmp_path / "whole", save_every=4, keep=9)
    whole.fit()
    shutil.copytree(tmp_path / "whole" / "step_00000004", tmp_path / "part" / "step_00000004")
    part = make(tmp_path / "part")
    part.fit()
    torch.testing.assert_close(everything(part), everything(whole), rtol=0, atol=0)
    for ema, expected in ((True, whole.ema_model), (False, whole.model)):
        fresh = build()
        load_weights(tmp_path / "whole", fresh, ema=ema)
        torch.testing.assert_close(fresh.state_dict(), expected.state_dict(), rtol=0, atol=0)
    if build is TiedByStorage:
        assert fresh.ref.data_ptr() == fresh.linear.weight.data_ptr()
        average = whole.ema_model
        assert average.ref.data_ptr() == average.linear.weight.data_ptr()


def test_tied_weights_that_differ_in_the_file_are_refused(tmp_path) -> None:
    weights = {"first.weight": torch.zeros(4, 3), "second.weight": torch.ones(4, 3)}
    save_file(weights, tmp_path / "untied.safetensors")
    with pytest.raises(
        ValueError, match=r"second.weight is first.weight in `model` and another tensor in the file"
    ):
        load_weights(tmp_path / "untied.safetensors", Tied())
    save_file({"second.weight": torch.ones(4, 3)}, tmp_path / "one.safetensors")
    tied = Tied()
    load_weights(tmp_path / "one.safetensors", tied)
    assert tied.first.weight.eq(1).all()


def wrapped(kind: str) -> nn.Module:
    net = make_net()
    if kind == "compiled inside":
        net[0] = torch.compile(net[0], backend="eager")
    elif kind == "parallel inside":
        net[0] = nn.DataParallel(net[0])
    elif kind == "both inside":
        net[0] = nn.DataParallel(torch.compile(net[0], backend="eager"))
    elif kind == "compiled twice":
        net[0] = torch.compile(net[0], backend="eager")
        net = torch.compile(net, backend="eager")
    return net


KINDS = ["plain", "compiled inside", "parallel inside", "both inside", "compiled twice"]


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_plain_at_any_depth(make_trainer, tmp_path, kind) -> None:
    trainer = make_trainer(model=wrapped(kind), output_dir=tmp_path, steps=4)
    trainer.fit()
    for name in ("model.safetensors", "ema.safetensors"):
        stored = load_file(tmp_path / "step_00000004" / name)
        assert stored.keys() == make_net().state_dict().keys()
    for other in KINDS:
        model = wrapped(other)
        load_weights(tmp_path, model, ema=False)
        for mine, theirs in zip(model.parameters(), trainer.model.parameters(), strict=True):
            assert torch.equal(mine, theirs)
    resumed = make_trainer(model=make_net(), output_dir=tmp_path, steps=5)
    resumed.fit()
    assert resumed.step == 5


def test_weights_of_others_may_have_the_marks_of_wrappers(tmp_path, net) -> None:
    marked = {f"module._orig_mod.{k}": v for k, v in net.state_dict().items()}
    save_file(marked, tmp_path / "others.safetensors")
    fresh = make_net()
    fresh[0].weight.data.zero_()
    load_weights(tmp_path / "others.safetensors", fresh)
    torch.testing.assert_close(fresh.state_dict(), net.state_dict(), rtol=0, atol=0)


def test_a_part_that_is_called_module_keeps_its_name(make_trainer, tmp_path) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module, self.weight = nn.Linear(3, 3), nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.module(x) * self.weight

    trainer = make_trainer(model=Own(), loss=simple, output_dir=tmp_path)
    trainer.fit()
    assert "module.weight" in load_file(tmp_path / "step_00000010" / "model.safetensors")
    fresh = Own()
    load_weights(tmp_path, fresh, ema=False)
    torch.testing.assert_close(fresh.state_dict(), trainer.model.state_dict(), rtol=0, atol=0)


class Extra(nn.Linear):
    def get_extra_state(self) -> object:
        return {"calls": 3}

    def set_extra_state(self, state: object) -> None:
        pass


@pytest.mark.parametrize("kind", ["sparse", "complex128", "extra state"])
def test_a_model_that_cannot_be_saved_is_refused_when_the_trainer_is_built(
    make_trainer, tmp_path, kind
) -> None:
    net = nn.Linear(3, 3) if kind != "extra state" else Extra(3, 3)
    if kind == "sparse":
        net.register_buffer("table", torch.eye(3).to_sparse())
    elif kind == "complex128":
        net.register_buffer("table", torch.zeros(3, dtype=torch.complex128))
    with pytest.raises(
        ValueError, match=r"`model` must have a state .*`(table|_extra_state)` cannot be saved"
    ):
        make_trainer(model=net, loss=simple, output_dir=tmp_path)
    make_trainer(model=net, loss=simple, ema_decay=None).fit()
    if kind != "extra state":  # the advice
        net.register_buffer("table", net.table, persistent=False)
        make_trainer(model=net, loss=simple, ema_decay=None, output_dir=tmp_path).fit()
        assert latest_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["lazy", "meta"])
def test_a_model_without_values_is_refused(make_trainer, kind) -> None:
    net = nn.LazyLinear(3) if kind == "lazy" else nn.Linear(3, 3, device="meta")
    with pytest.raises(ValueError, match="`model` must have its parameters in memory; weight has"):
        make_trainer(model=net, loss=simple)
    if kind == "lazy":
        net(torch.zeros(1, 3))
    else:
        net.to_empty(device="cpu").reset_parameters()
    make_trainer(model=net, loss=simple).fit()


def test_a_folder_that_is_a_file_is_found_out_before_training(make_trainer, tmp_path) -> None:
    (tmp_path / "run").write_text("a file")
    for folder in (tmp_path / "run", tmp_path / "run" / "below"):
        trainer = make_trainer(output_dir=folder)
        with pytest.raises(ValueError, match=r"`output_dir` must be a folder to write to.*Error"):
            trainer.fit()
        assert trainer.step == 0
    assert (tmp_path / "run").read_text() == "a file"
    make_trainer(output_dir=tmp_path / "another").fit()


def test_a_folder_that_is_read_only_is_found_out_before_training(
    make_trainer, tmp_path, monkeypatch
) -> None:
    """Permissions do not bind root, as whom tests may run; a read-only file system does."""
    opened = io.open

    def read_only(file, mode="r", *args, **kwargs):
        if str(file).startswith(str(tmp_path)) and "w" in mode:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))
        return opened(file, mode, *args, **kwargs)

    monkeypatch.setattr(io, "open", read_only)
    trainer = make_trainer(output_dir=tmp_path)
    with pytest.raises(ValueError, match=r"`output_dir` must be a folder to write to.*Read-only"):
        trainer.fit()
    assert trainer.step == 0
    monkeypatch.undo()
    trainer.fit()
    assert names(tmp_path) == ["step_00000010"], "no probe is left"


def test_a_disk_without_room_for_a_checkpoint_is_found_out_before_training(
    make_trainer, tmp_path, monkeypatch
) -> None:
    usage = shutil._ntuple_diskusage(10_000, 9_000, 1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    trainer = make_trainer(output_dir=tmp_path)
    with pytest.raises(ValueError, match=r"room for a checkpoint of .* bytes; .* has 1000 bytes"):
        trainer.fit()
    assert trainer.step == 0
    usage = shutil._ntuple_diskusage(0, 0, 0)  # a file system that does not tell
    trainer.fit()


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file may grow beyond this; the kernel itself refuses, to every library."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [100, 1500, 3500])  # the weights, the optimiser, the manifest
def test_a_save_that_fails_cleans_up_and_says_what_is_left(
    make_trainer, everything, tmp_path, limit
) -> None:
    whole = make_trainer(steps=12)
    whole.fit()
    trainer = make_trainer(steps=12, save_every=4, output_dir=tmp_path)
    save = trainer._save

    def full(folder: Path) -> None:
        with full_disk(limit) if trainer.step == 8 else nullcontext():
            save(folder)

    trainer._save = full
    message = r"step_00000008 could not be saved: .*had \d+ bytes free; the last good .*00000004\."
    with pytest.raises(CheckpointError, match=message) as error:
        trainer.fit()
    assert error.value.__cause__ is not None
    assert names(tmp_path) == ["step_00000004"]
    trainer.fit()  # goes on in memory
    torch.testing.assert_close(everything(trainer), everything(whole), rtol=0, atol=0)
    shutil.rmtree(tmp_path / "step_00000012")
    again = make_trainer(steps=12, output_dir=tmp_path)  # as the same command would
    again.fit()
    torch.testing.assert_close(everything(again), everything(whole), rtol=0, atol=0)


def test_the_only_save_may_fail(make_trainer, tmp_path) -> None:
    trainer = make_trainer(output_dir=tmp_path)
    save = trainer._save

    def full(folder: Path) -> None:
        with full_disk(100):
            save(folder)

    trainer._save = full
    with pytest.raises(CheckpointError, match="there is no checkpoint yet"):
        trainer.fit()
    assert names(tmp_path) == [] and trainer.step == 10
    trainer._save = save
    trainer.fit()  # nothing is left to do but to save
    assert names(tmp_path) == ["step_00000010"]


def test_nothing_is_overwritten(make_trainer, tmp_path) -> None:
    first = make_trainer(output_dir=tmp_path)
    second = make_trainer(output_dir=tmp_path, loss=lambda m, b: first.fit() or simple(m, b))
    with pytest.raises(CheckpointError, match=r"step_00000010 could not .*another run has written"):
        second.fit()


def test_what_is_registered_is_tried_before_training(make_trainer, tmp_path) -> None:
    class Handle:
        def state_dict(self) -> dict:
            return {"file": threading.Lock()}

        def load_state_dict(self, state: dict) -> None:
            pass

    trainer = make_trainer(output_dir=tmp_path)
    trainer.accelerator.register_for_checkpointing(Handle())
    with pytest.raises(ValueError, match=r"`accelerator` must be .* Handle cannot be saved"):
        trainer.fit()
    assert trainer.step == 0


def test_a_home_folder_is_the_home_folder(make_trainer, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    make_trainer(output_dir="~/run").fit()
    assert names(tmp_path) == ["home"]
    assert latest_checkpoint("~/run") == tmp_path / "home" / "run" / "step_00000010"
    load_weights("~/run", make_net())


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-len(content) // 2] ^= 255
    file.write_bytes(content)


@pytest.mark.parametrize("damage", ["optimizer.bin", "model.safetensors", "nan"])
def test_damage_within_a_file_is_found_and_an_older_checkpoint_is_taken(
    make_trainer, everything, tmp_path, damage
) -> None:
    whole = make_trainer(save_every=4, output_dir=tmp_path)
    whole.fit()
    newest = tmp_path / "step_00000010"
    if damage == "nan":
        file = newest / "model.safetensors"
        save_file({k: v * torch.nan for k, v in load_file(file).items()}, file)
    else:
        file = newest / damage
        flip_a_byte(file)
    with pytest.raises(ValueError, match=r"damaged since. Give an older checkpoint"):
        load_weights(file, make_net())
    trainer = make_trainer(output_dir=tmp_path)
    with pytest.warns(UserWarning, match=f"ignored .*step_00000010: it is .*({file.name}|comp)"):
        trainer.fit()
    torch.testing.assert_close(everything(trainer), everything(whole), rtol=0, atol=0)


def test_checkpoints_that_are_all_damaged_are_not_taken_for_none(make_trainer, tmp_path) -> None:
    make_trainer(output_dir=tmp_path).fit()
    flip_a_byte(tmp_path / "step_00000010" / "optimizer.bin")
    trainer = make_trainer(output_dir=tmp_path)
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="step_00000010 are all"):
        trainer.fit()
    assert trainer.step == 0
    shutil.rmtree(tmp_path / "step_00000010")
    trainer.fit()
    assert trainer.step == 10


def test_a_file_that_holds_no_weights(tmp_path, net) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(ValueError, match=r"`path` must be a safetensors file; .* is not"):
        load_weights(tmp_path / "model.safetensors", net)
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    with torch.device("meta"):
        empty = make_net()
    with pytest.raises(ValueError, match=r"`model` must have memory .*to_empty"):
        load_weights(tmp_path / "model.safetensors", empty)
    load_weights(tmp_path / "model.safetensors", empty.to_empty(device="cpu"))


@pytest.mark.parametrize("what", ["weight", "moment"])
def test_no_checkpoint_is_made_of_weights_that_are_not_finite(make_trainer, tmp_path, what) -> None:
    """They can overflow in a step whose loss and gradients are finite."""
    trainer = make_trainer(save_every=2, output_dir=tmp_path)

    def overflow(optimizer: torch.optim.Optimizer, *_: object) -> None:
        if trainer.step == 5:
            p = trainer.model[0].weight
            (p if what == "weight" else optimizer.state[p]["exp_avg_sq"]).data[0, 0] = torch.inf

    trainer._optimizer.optimizer.register_step_post_hook(overflow)
    name = "parameter 0.weight" if what == "weight" else "exp_avg_sq of 0.weight"
    with pytest.raises(
        NonFiniteLossError, match=f"the {name} is not finite after step 6 .*last good .*00000004"
    ):
        trainer.fit()
    assert names(tmp_path) == ["step_00000002", "step_00000004"]
