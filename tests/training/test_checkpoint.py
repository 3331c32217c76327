import copy
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from fm_ext.training import latest_checkpoint, load_weights
from fm_ext.training.checkpoint import find_checkpoint, read_manifest


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
        UserWarning, match="ignored .*step_00000006: it is not a complete checkpoint"
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
