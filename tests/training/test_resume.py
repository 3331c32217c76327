import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import GradientAccumulationPlugin
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, TensorDataset

from fm_ext.training import latest_checkpoint, load_weights
from fm_ext.training.checkpoint import find_checkpoint
from fm_ext.training.resume import fingerprint, similar

DATA = TensorDataset(torch.randn(22, 3, generator=torch.Generator().manual_seed(2)))


class Permuted(Sampler[int]):
    """Draws its order from the default generator."""

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(len(DATA)).tolist())

    def __len__(self) -> int:
        return len(DATA)


def equal(a: dict, b: dict) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("seedable", [False, True])
@pytest.mark.parametrize(("accumulate", "across"), [(1, False), (4, False), (4, True)])
def test_resumed_is_uninterrupted(
    make_trainer, everything, keep_only, tmp_path, accumulate, across, seedable
) -> None:
    """Bit for bit, from each step: in the middle and at the border of an epoch, after full and partial steps.

    6 batches an epoch: with 4 accumulated, steps end after 4 and 6 of them, or, across epochs, after 4, 2, 6.
    """
    plugin = GradientAccumulationPlugin(num_steps=accumulate, sync_with_dataloader=not across)
    accelerator = {
        "gradient_accumulation_plugin": plugin,
        "dataloader_config": DataLoaderConfiguration(use_seedable_sampler=seedable),
    }
    settings = {"steps": 8, "warmup": 2, "keep": 99, "accelerator": accelerator}
    whole = make_trainer(output_dir=tmp_path / "whole", save_every=1, **settings)
    whole.fit()
    expected = everything(whole)
    for step in range(1, 8):
        torch.rand(step)
        folder = keep_only(tmp_path / "whole", tmp_path / str(step), step)
        resumed = make_trainer(output_dir=folder, **settings)
        resumed.fit()
        equal(everything(resumed), expected)


@pytest.mark.parametrize(
    "kind",
    ["workers", "persistent", "persistent with a generator", "own", "generator", "sequential"],
)
def test_resumed_is_uninterrupted_for_other_loaders(
    make_trainer, everything, keep_only, tmp_path, kind
) -> None:
    def loader() -> DataLoader:
        return {
            "workers": lambda: DataLoader(DATA, 4, shuffle=True, num_workers=1),
            "persistent": lambda: DataLoader(
                DATA, 4, shuffle=True, num_workers=1, persistent_workers=True
            ),
            "persistent with a generator": lambda: DataLoader(
                DATA,
                4,
                shuffle=True,
                generator=torch.Generator(),
                num_workers=1,
                persistent_workers=True,
            ),
            "own": lambda: DataLoader(
                DATA, 4, sampler=Permuted(), num_workers=1, persistent_workers=True
            ),
            "generator": lambda: DataLoader(DATA, 4, shuffle=True, generator=torch.Generator()),
            "sequential": lambda: DataLoader(DATA, 4, drop_last=True),
        }[kind]()

    whole = make_trainer(output_dir=tmp_path / "whole", save_every=1, keep=99, loader=loader())
    whole.fit()
    folder = keep_only(tmp_path / "whole", tmp_path / "part", 8)
    resumed = make_trainer(output_dir=folder, loader=loader())
    resumed.fit()
    equal(everything(resumed), everything(whole))


def test_images_of_fm_ext_data(make_trainer, everything, keep_only, tmp_path) -> None:
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    from fm_ext.data import image_loader

    pixels = torch.randint(256, (22, 6, 6), dtype=torch.uint8).numpy()
    data = datasets.Dataset.from_dict({"image": [Image.fromarray(p) for p in pixels]}).cast_column(
        "image", datasets.Image()
    )

    def make(folder: Path, **settings) -> object:
        return make_trainer(
            model=nn.Linear(6, 6),
            loss=lambda m, b: (m(b["image"]) - torch.randn_like(b["image"])).square().mean(),
            loader=image_loader(data, batch_size=4, flip=True, in_memory=True),
            output_dir=folder,
            **settings,
        )

    whole = make(tmp_path / "whole", save_every=1, keep=99)
    whole.fit()
    resumed = make(keep_only(tmp_path / "whole", tmp_path / "part", 7))
    resumed.fit()
    equal(everything(resumed), everything(whole))


def test_a_finished_run_is_loaded_and_not_trained(make_trainer, everything, tmp_path) -> None:
    first = make_trainer(output_dir=tmp_path)
    first.fit()
    first.fit()
    expected = everything(first)

    def refuse(model: object, batch: object) -> torch.Tensor:
        raise AssertionError("trained again")

    again = make_trainer(output_dir=tmp_path, loss=refuse)
    again.fit()
    assert again.step == 10
    equal(everything(again), expected)


def test_more_steps_may_be_asked_for(make_trainer, everything, tmp_path) -> None:
    """With a constant learning rate it is the longer run; with a decay, the new schedule from here on."""
    whole = make_trainer(steps=14, decay="constant")
    whole.fit()
    make_trainer(steps=10, decay="constant", output_dir=tmp_path).fit()
    longer = make_trainer(steps=14, decay="constant", output_dir=tmp_path, log_every=2, keep=1)
    longer.fit()
    equal(everything(longer), everything(whole))


def test_the_schedule_of_a_longer_run(make_trainer, tmp_path) -> None:
    make_trainer(steps=4, decay="linear", output_dir=tmp_path).fit()
    longer = make_trainer(steps=8, decay="linear", output_dir=tmp_path, log_every=1)
    rates = []
    longer.accelerator.log = lambda values, step: rates.append(values["lr"])
    longer.fit()
    assert rates == pytest.approx([0.01 * (1 - k / 8) for k in range(4, 8)])


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"lr": 0.02}, "`lr` is 0.02, but .*step_00000010 was trained with 0.01.*load_weights"),
        ({"seed": 1}, "`seed` is 1, but .* was trained with 0"),
        ({"betas": (0.9, 0.9)}, r"`betas` is \[0.9, 0.9\]"),
        ({"ema_decay": None}, "`ema_decay` is None"),
        (
            {"loader": DataLoader(DATA, 5, shuffle=True)},
            "`batch_size` is 5, but .* with 4.*batches of the same size",
        ),
        ({"accelerator": {"gradient_accumulation_steps": 2}}, "`gradient_accumulation_steps` is 2"),
        ({"accelerator": {"mixed_precision": "bf16"}}, "`mixed_precision` is bf16"),
        ({"steps": 9}, "`steps` must be at least the 10 steps .*; got 9"),
        ({"resume": False}, "`output_dir` must hold no checkpoints with resume=False; it has .*10"),
        ({"model": nn.Linear(3, 3)}, "`model` must be built like the network that was trained"),
    ],
)
def test_another_run_is_refused(make_trainer, tmp_path, changed, match) -> None:
    make_trainer(output_dir=tmp_path).fit()
    with pytest.raises(ValueError, match=match):
        make_trainer(output_dir=tmp_path, **changed).fit()


def test_another_number_of_processes_is_refused(make_trainer, tmp_path) -> None:
    make_trainer(output_dir=tmp_path).fit()
    manifest = latest_checkpoint(tmp_path) / "trainer.json"
    manifest.write_text(manifest.read_text().replace('"processes": 1', '"processes": 4'))
    with pytest.raises(ValueError, match=r"`processes` is 1, .*--num_processes 4"):
        make_trainer(output_dir=tmp_path).fit()


OTHER = TensorDataset(torch.randn(22, 3, generator=torch.Generator().manual_seed(3)))
LONGER = TensorDataset(torch.cat([DATA.tensors[0], torch.zeros(2, 3)]))


class Stream(IterableDataset[list[torch.Tensor]]):
    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        return iter([row] for row in self.rows)


class Noisy(Dataset[list[torch.Tensor]]):
    """Draws random numbers of its own."""

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        return [DATA[index][0] + random.random()]

    def __len__(self) -> int:
        return len(DATA)


@pytest.mark.parametrize(
    ("first", "second", "match"),
    [
        ((DATA, 4), (OTHER, 4), "`loader` must yield the data .*step_00000010 was trained with"),
        ((DATA, 4), (LONGER, 4), "`rows` is 24, but .* with 22"),
        ((DATA, 5), (LONGER, 6), "`batch_size` is 6, but .* with 5"),
        ((Stream(DATA.tensors[0]), 4), (Stream(OTHER.tensors[0]), 4), "`loader` must yield the"),
        ((Stream(DATA.tensors[0]), 4), (Stream(DATA.tensors[0]), 5), "`batch_size` is 5"),
    ],
)
def test_other_data_are_refused(make_trainer, tmp_path, first, second, match) -> None:
    def fit(data: Dataset, batch_size: int, steps: int) -> None:
        shuffle = not isinstance(data, IterableDataset)
        loader = DataLoader(data, batch_size, shuffle=shuffle)
        make_trainer(loader=loader, steps=steps, output_dir=tmp_path).fit()

    fit(*first, 10)
    with pytest.raises(ValueError, match=match):
        fit(*second, 12)
    fit(*first, 12)


def test_batches_of_another_shape_from_a_stream_of_batches(make_trainer, tmp_path) -> None:
    def loader(size: int) -> DataLoader:
        batches = [[part] for part in DATA.tensors[0].split(size)]
        return DataLoader(Stream(batches), batch_size=None)

    def loss(model: nn.Module, batch: list) -> torch.Tensor:
        return model(batch[0][0]).square().mean()

    make_trainer(loader=loader(4), loss=loss, output_dir=tmp_path).fit()
    with pytest.raises(ValueError, match="`loader` must yield the data"):
        make_trainer(loader=loader(5), loss=loss, steps=12, output_dir=tmp_path).fit()


def test_data_that_are_rounded_otherwise_or_are_random_are_the_same_data(
    make_trainer, tmp_path
) -> None:
    rounded = TensorDataset(DATA.tensors[0] * (1 + 1e-3))  # as by another decoder of images
    for number, (first, second) in enumerate([(DATA, rounded), (Noisy(), Noisy())]):
        for steps, data in ((10, first), (12, second)):
            trainer = make_trainer(
                loader=DataLoader(data, 4, shuffle=True),
                steps=steps,
                output_dir=tmp_path / str(number),
            )
            trainer.fit()
            assert trainer.step == steps


@pytest.mark.parametrize("shift", [0.0, 300.0])  # values far from 0 are told apart by how they vary
def test_fingerprints(generator, shift) -> None:
    images = shift + torch.rand(16, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (16,), generator=generator)
    batch = {"image": images, "label": labels}
    known = fingerprint(batch)
    assert json.loads(json.dumps(known)) == known
    assert similar(known, fingerprint({"label": labels.clone(), "image": images.double()}))
    assert similar(known, fingerprint({"image": images + 1e-3, "label": labels}))
    one_other = images.clone()
    one_other[3] = shift + torch.rand(3, 32, 32, generator=generator)
    for other in (
        {"image": one_other, "label": labels},
        {"image": images, "label": labels.roll(1)},
        {"image": images[:8], "label": labels[:8]},
        {"image": images},
    ):
        assert not similar(known, fingerprint(other))
    assert fingerprint(["text", 3, None]) == []
    assert similar(fingerprint(torch.zeros(0, 3)), fingerprint(torch.zeros(0, 3)))


class Two(nn.Module):
    """Two layers of the same shape, in one or the other order."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x) + self.b(x)


def test_what_is_optimised_must_be_the_same(make_trainer, everything, tmp_path) -> None:
    def make(model: nn.Module, **settings) -> object:
        return make_trainer(model=model, output_dir=tmp_path, **settings)

    def frozen(name: str) -> nn.Module:
        model = Two("a", "b")
        model.get_submodule(name).requires_grad_(False)
        return model

    make(frozen("a")).fit()
    manifest = json.loads((latest_checkpoint(tmp_path) / "trainer.json").read_text())
    assert manifest["optimised"] == {"b.weight": "(3, 3) float32", "b.bias": "(3,) float32"}
    with pytest.raises(ValueError, match=r"same layers frozen; .*b.weight is not among them and"):
        make(frozen("b"), steps=12).fit()
    with pytest.raises(ValueError, match=r"a.weight is \(3, 3\) float32 and was not among them"):
        make(Two("a", "b"), steps=12).fit()
    make(frozen("a"), steps=12).fit()
    shutil.rmtree(tmp_path)
    make(Two("a", "b")).fit()
    with pytest.raises(ValueError, match="they are in another order"):
        make(Two("b", "a"), steps=12).fit()
    fresh = Two("b", "a")
    load_weights(tmp_path, fresh)  # the advice: a new run from these weights
    make_trainer(model=fresh, output_dir=tmp_path / "new").fit()


@pytest.mark.parametrize("call", [7, 8])
def test_an_interrupted_fit_goes_on_in_memory(make_trainer, everything, call) -> None:
    """Interrupted in the first and in the second of two accumulated batches."""
    whole = make_trainer(accelerator={"gradient_accumulation_steps": 2})
    whole.fit()
    trainer = make_trainer(accelerator={"gradient_accumulation_steps": 2})
    loss, calls = trainer.loss, []

    def interrupted(model: nn.Module, batch: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return loss(model, batch)

    trainer.loss = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    # A dropped forward pass leaves its mark in the batch norm's running mean; nothing else does.
    trainer.fit()
    mine, theirs = everything(trainer), everything(whole)
    for name in mine:
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(mine[name], theirs[name]), name


def terminate_at(trainer, step: int) -> None:
    loss = trainer.loss

    def terminated(model: nn.Module, batch: object) -> torch.Tensor:
        if trainer.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(model, batch)

    trainer.loss = terminated


def test_sigterm_saves_and_exits(make_trainer, everything, tmp_path, capsys) -> None:
    whole = make_trainer()
    whole.fit()
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append("outer"))
    try:
        trainer = make_trainer(output_dir=tmp_path)
        terminate_at(trainer, 4)
        with pytest.raises(SystemExit) as exit_:
            trainer.fit()
        assert exit_.value.code == 143
        assert latest_checkpoint(tmp_path) == tmp_path / "step_00000005"
        assert "SIGTERM: saved" in capsys.readouterr().out
        os.kill(os.getpid(), signal.SIGTERM)
        assert received == ["outer"], "the previous handler is back"
    finally:
        signal.signal(signal.SIGTERM, before)
    resumed = make_trainer(output_dir=tmp_path)
    resumed.fit()
    equal(everything(resumed), everything(whole))


def test_sigterm_in_the_last_step_is_not_swallowed(make_trainer, tmp_path) -> None:
    trainer = make_trainer(output_dir=tmp_path)
    terminate_at(trainer, 9)
    with pytest.raises(SystemExit):
        trainer.fit()
    assert latest_checkpoint(tmp_path) == tmp_path / "step_00000010"


def test_a_signal_too_late_is_sent_again(make_trainer, tmp_path, monkeypatch) -> None:
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append(1))
    try:
        trainer = make_trainer(output_dir=tmp_path)
        save = trainer._save

        def late(folder: Path) -> None:
            save(folder)
            os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(trainer, "_save", late)
        trainer.fit()
        assert received == [1]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_no_handler_without_a_folder_or_outside_the_main_thread(make_trainer, tmp_path) -> None:
    seen = []

    def look(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        seen.append(signal.getsignal(signal.SIGTERM))
        return model(batch[0]).square().mean()

    make_trainer(loss=look).fit()
    thread = threading.Thread(target=make_trainer(loss=look, output_dir=tmp_path).fit)
    thread.start()
    thread.join()
    assert set(seen) == {signal.getsignal(signal.SIGTERM)}
    assert latest_checkpoint(tmp_path), "it trained all the same"


SCRIPT = Path(__file__).with_name("killed.py")


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        command, env=env, capture_output=True, text=True, start_new_session=True, timeout=120
    )


@pytest.mark.parametrize("moment", ["write", "rename", "prune"])
def test_a_kill_inside_a_save_leaves_a_usable_checkpoint(moment, tmp_path) -> None:
    """`killed.py` trains 8 steps, saves at 4 and 8 and kills itself (-9) in the second save."""
    killed = run(tmp_path, moment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    good = "step_00000008" if moment == "prune" else "step_00000004"
    assert latest_checkpoint(tmp_path) == tmp_path / good
    path, _ = find_checkpoint(tmp_path, Accelerator(cpu=True))
    assert path == tmp_path / good
    assert [path.name for path in tmp_path.iterdir()] == [good], (
        "no leftovers, and no warning of any"
    )


def test_sigterm_to_the_whole_job_spares_the_workers(tmp_path) -> None:
    """Slurm signals every process of a job, the data loader's too; these must still end with the main process."""
    preempted = run(tmp_path, "sigterm")
    assert preempted.returncode == 143, preempted.stderr
    assert latest_checkpoint(tmp_path)
