import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, GradientAccumulationPlugin, ProjectConfiguration
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset

from fm_ext.training import NonFiniteLossError, Trainer, TrainerConfig
from fm_ext.training.resume import seed_micro_step

CPU = torch.device("cpu")


def linear(model: nn.Module, batch: list[Tensor]) -> Tensor:
    x, y = batch
    return (model(x) - y).square().mean()


def pairs(samples: int) -> TensorDataset:
    g = torch.Generator().manual_seed(3)
    return TensorDataset(torch.randn(samples, 3, generator=g), torch.randn(samples, 2, generator=g))


def noisy(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return linear(model, [batch[0] + torch.randn_like(batch[0]), batch[1]])


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine"])
def test_it_is_the_plain_loop(make_trainer, decay) -> None:
    """One process, no accumulation: as anybody would write it."""
    model = nn.Linear(3, 2)
    config = TrainerConfig(
        steps=12, lr=0.05, weight_decay=0.1, warmup=3, decay=decay, grad_clip=0.5, ema_decay=0.9
    )
    expected, average = copy.deepcopy(model), copy.deepcopy(model)
    groups = [
        {"params": [expected.weight], "weight_decay": 0.1},
        {"params": [expected.bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.05, betas=config.betas)
    schedule = LambdaLR(optimizer, config.lr_factor)
    loader = DataLoader(pairs(20), 4)
    step = 0
    while step < 12:
        for batch in loader:
            if step == 12:
                break
            seed_micro_step(0, step, 0, 0, CPU)
            noisy(expected, batch).backward()
            clip_grad_norm_(expected.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            step += 1
            d = min(0.9, (1 + step) / (10 + step))
            for a, p in zip(average.parameters(), expected.parameters(), strict=True):
                a.data.mul_(d).add_(p.detach(), alpha=1 - d)

    settings = {name: getattr(config, name) for name in ("weight_decay", "warmup", "grad_clip")}
    trainer = make_trainer(
        model=model,
        loss=noisy,
        loader=loader,
        steps=12,
        lr=0.05,
        decay=decay,
        ema_decay=0.9,
        **settings,
    )
    trainer.fit()
    torch.testing.assert_close(
        dict(trainer.model.named_parameters()), dict(expected.named_parameters())
    )
    torch.testing.assert_close(trainer.ema_model.state_dict(), average.state_dict())
    assert trainer.model is model, "trained in place"


class CountedAdamW:
    """Counts the steps of the optimiser and the batches between them."""

    def __init__(self, trainer: Trainer):
        self.batches: list[int] = []
        self._seen = 0
        trainer._optimizer.optimizer.register_step_post_hook(self._step)
        loss = trainer.loss

        def counted(model: nn.Module, batch: Any) -> Tensor:
            self._seen += 1
            return loss(model, batch)

        trainer.loss = counted

    def _step(self, *_: Any) -> None:
        self.batches.append(self._seen)
        self._seen = 0


@pytest.mark.parametrize(
    ("samples", "accumulate", "across", "expected"),
    [
        (20, 1, False, [1] * 8),
        (20, 2, False, [2, 2, 1, 2, 2, 1, 2, 2]),  # 5 batches an epoch: a partial step at its end
        (20, 2, True, [2] * 8),  # sync_with_dataloader=False: over the border of the epochs
        (8, 5, False, [2] * 8),  # an epoch shorter than a step
        (8, 5, True, [5] * 8),
        (4, 3, False, [1] * 8),
    ],
)
def test_steps_are_those_of_the_optimiser(
    make_trainer, samples, accumulate, across, expected
) -> None:
    plugin = GradientAccumulationPlugin(num_steps=accumulate, sync_with_dataloader=not across)
    trainer = make_trainer(
        model=nn.Linear(3, 2),
        loss=linear,
        loader=DataLoader(pairs(samples), 4),
        steps=8,
        accelerator={"gradient_accumulation_plugin": plugin},
    )
    counted = CountedAdamW(trainer)
    trainer.fit()
    assert counted.batches == expected
    assert trainer.step == 8


@pytest.mark.parametrize("accumulate", [5, 7])
def test_accumulated_batches_are_one_large_batch(make_trainer, accumulate) -> None:
    """Also where the epoch ends before the step is full: no loss is divided by batches that never came."""
    gradients: list[list[Tensor]] = []
    for settings, batch_size in (({"gradient_accumulation_steps": accumulate}, 4), ({}, 20)):
        torch.manual_seed(0)
        model = nn.Linear(3, 2, bias=False)
        trainer = make_trainer(
            model=model,
            loss=linear,
            loader=DataLoader(pairs(20), batch_size),
            steps=4,
            grad_clip=None,  # and of Adam's steps none would tell: it undoes every constant factor
            accelerator=settings,
        )
        seen: list[Tensor] = []
        trainer._optimizer.optimizer.register_step_pre_hook(
            lambda *_, weight=model.weight, seen=seen: seen.append(weight.grad.clone())
        )
        trainer.fit()
        gradients.append(seen)
    assert len(gradients[0]) == 4
    torch.testing.assert_close(*gradients)


def test_gradients_are_clipped(make_trainer) -> None:
    norms = []
    trainer = make_trainer(loss=lambda m, b: 1e4 * m(b[0]).square().mean(), grad_clip=0.25)

    def look(*_: Any) -> None:
        grads = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        norms.append(torch.stack([g.norm() for g in grads]).norm().item())

    trainer._optimizer.optimizer.register_step_pre_hook(look)
    trainer.fit()
    assert norms == pytest.approx([0.25] * 10, rel=1e-4)


def test_norms_and_biases_do_not_decay(make_trainer, net) -> None:
    """With zero gradients AdamW only decays."""
    before = copy.deepcopy(net.state_dict())
    trainer = make_trainer(
        model=net, loss=lambda m, b: 0 * sum(p.sum() for p in m.parameters()), weight_decay=0.5
    )
    trainer.fit()
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name]) == (parameter.ndim < 2), name


def test_training_is_in_train_mode_and_the_average_in_eval_mode(make_trainer, net) -> None:
    modes = []
    trainer = make_trainer(
        model=net.eval(), loss=lambda m, b: modes.append(m.training) or m(b[0]).square().mean()
    )
    trainer.fit()
    assert all(modes) and not trainer.ema_model.training


def test_frozen_parameters_stay(make_trainer, net) -> None:
    net[0].requires_grad_(False)
    before = copy.deepcopy(net[0].state_dict())
    trainer = make_trainer(model=net, weight_decay=0.5)
    trainer.fit()
    torch.testing.assert_close(net[0].state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(trainer.ema_model[0].state_dict(), before, rtol=0, atol=0)


class NoReading(TorchDispatchMode):
    """Fails when a tensor becomes a Python number, for which a GPU would have to be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a device-to-host sync"
        assert func is not torch.ops.aten.is_nonzero.default, "a device-to-host sync"
        return func(*args, **(kwargs or {}))


def test_steps_do_not_wait_for_the_device(make_trainer, monkeypatch) -> None:
    trainer = make_trainer(
        loss=noisy,
        model=nn.Linear(3, 2),
        loader=DataLoader(pairs(64), 4),  # one epoch, since a loader's start reads a seed
        steps=8,
        log_every=8,
        accelerator={"gradient_accumulation_steps": 2},
    )
    step = trainer._optimizer_step
    steps = []

    def watched(*args: Any) -> None:
        if 1 <= len(steps) < 7:  # the first one makes the optimiser's state
            with NoReading():
                step(*args)
        else:
            step(*args)
        steps.append(trainer.step)

    monkeypatch.setattr(trainer, "_optimizer_step", watched)
    trainer.fit()
    assert steps == list(range(1, 9))


def test_the_watch_for_reading_works() -> None:
    with pytest.raises(AssertionError, match="sync"), NoReading():
        bool(torch.ones(()) > 0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_what_is_logged(make_trainer, monkeypatch, accumulate) -> None:
    """Means since the last time; of 5 batches an epoch, 2 accumulated make steps of 2, 2 and 1."""
    logged: list[tuple[int, dict[str, float]]] = []
    losses: list[list[float]] = []  # by step

    def remembered(model: nn.Module, batch: Any) -> Tensor:
        loss = linear(model, batch)
        losses.extend([] for _ in range(trainer.step + 1 - len(losses)))
        losses[trainer.step].append(loss.item())
        return loss

    trainer = make_trainer(
        model=nn.Linear(3, 2),
        loss=remembered,
        loader=DataLoader(pairs(20), 4),
        steps=7,
        log_every=3,
        warmup=2,
        accelerator={"gradient_accumulation_steps": accumulate},
    )
    monkeypatch.setattr(
        trainer.accelerator, "log", lambda values, step: logged.append((step, values))
    )
    trainer.fit()
    assert [step for step, _ in logged] == [3, 6, 7]
    means = [sum(step) / len(step) for step in losses]
    for (step, values), window in zip(logged, (means[:3], means[3:6], means[6:]), strict=True):
        assert values["loss"] == pytest.approx(sum(window) / len(window))
        assert values["lr"] == pytest.approx(0.01 * trainer.config.lr_factor(step - 1))
        assert values["grad_norm"] > 0


def test_tensorboard(make_trainer, tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(accelerator={"log_with": "tensorboard", "project_dir": tmp_path})
    trainer.fit()
    trainer.accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "training")).Reload()
    assert {"loss", "lr", "grad_norm"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [3, 6, 9, 10]


@pytest.mark.parametrize("where", ["loss", "gradient norm"])
@pytest.mark.parametrize("save_every", [2, None])
def test_a_non_finite_loss_stops_the_run(make_trainer, tmp_path, where, save_every) -> None:
    trainer = make_trainer(log_every=4, save_every=save_every, output_dir=tmp_path, grad_clip=None)

    def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
        value = model(batch[0]).square().mean()
        if trainer.step != 5:
            return value
        if where == "loss":
            return value * torch.nan
        return value + (model[0].weight * 0).sum().abs().sqrt()  # finite, its gradient is not

    trainer.loss = loss
    kept = "step_00000004" if save_every else "no checkpoint was kept"
    with pytest.raises(NonFiniteLossError, match=f"the {where} is nan at step 6 .*{kept}") as error:
        trainer.fit()
    assert (error.value.step, error.value.process) == (6, 0)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == (["step_00000002", "step_00000004"] if save_every else [])


def test_bf16(make_trainer, net) -> None:
    seen = []
    net[0].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    trainer = make_trainer(model=net, accelerator={"mixed_precision": "bf16"})
    trainer.fit()
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    seen.clear()
    trainer.ema_model(torch.randn(2, 3))
    assert seen == [torch.float32], "the average is free of autocast"


def test_a_compiled_model_trains_the_same(make_trainer, everything, net) -> None:
    results = []
    for model in (copy.deepcopy(net), torch.compile(copy.deepcopy(net), backend="eager")):
        trainer = make_trainer(model=model)
        trainer.fit()
        results.append(everything(trainer))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_a_streamed_data_set(make_trainer) -> None:
    class Stream(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[list[Tensor]]:
            return iter([torch.full((4, 3), float(k))] for k in range(5))

    seen = []
    trainer = make_trainer(
        loss=lambda m, b: seen.append(int(b[0][0, 0])) or m(b[0]).square().mean(),
        loader=DataLoader(Stream(), batch_size=None),
        steps=7,
    )
    trainer.fit()
    assert seen == [0, 1, 2, 3, 4, 0, 1]


def test_accelerate_sees_no_loader_afterwards(make_trainer) -> None:
    """Else `gather_for_metrics`, called after training, would drop samples."""
    trainer = make_trainer(steps=6)
    trainer.fit()
    assert not trainer.accelerator.gradient_state.in_dataloader


def test_random_numbers_elsewhere_do_not_matter(make_trainer, everything) -> None:
    results = []
    for waste in (0, 5):
        torch.rand(waste)
        trainer = make_trainer()
        step = trainer._optimizer_step

        def wasteful(*args: Any, step: Any = step, waste: int = waste) -> None:
            step(*args)
            torch.rand(waste)

        trainer._optimizer_step = wasteful
        trainer.fit()
        results.append(everything(trainer))
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_construction_leaves_the_random_state(make_trainer, net) -> None:
    before = torch.get_rng_state()
    make_trainer(model=net)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("setting", "error", "match"),
    [
        ({"loader": [1, 2]}, TypeError, "`loader` must be a torch DataLoader; got list"),
        ({"model": nn.SiLU()}, ValueError, "`model` must have parameters that require gradients"),
        ({"model": nn.Linear(3, 3).half()}, ValueError, "`module` must hold float32 parameters"),
    ],
)
def test_errors_of_construction(make_trainer, untyped, setting, error, match) -> None:
    with pytest.raises(error, match=match):
        make_trainer(**setting)


def test_errors_of_accelerators(make_trainer, tmp_path, monkeypatch) -> None:
    trainer = make_trainer()
    loader = DataLoader(pairs(4), 4)
    with pytest.raises(ValueError, match=r"must not be in use .*free_memory"):
        Trainer(nn.Linear(3, 2), linear, loader, trainer.config, trainer.accelerator)
    project = ProjectConfiguration(project_dir=str(tmp_path), automatic_checkpoint_naming=True)
    with pytest.raises(ValueError, match="must leave the naming of checkpoints to `output_dir`"):
        make_trainer(accelerator={"project_config": project})
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ValueError, match=r"must keep a whole copy of the model .*FSDP"):
        make_trainer()


@pytest.mark.parametrize("drop_last", [False, True])
def test_an_empty_loader(make_trainer, drop_last) -> None:
    loader = DataLoader(pairs(3 if drop_last else 0), 4, drop_last=drop_last)
    got = "3 rows in batches of 4 for 1. Fix: batches of at most 3" if drop_last else "an empty"
    with pytest.raises(ValueError, match=f"`loader` must yield at least one batch.*got {got}"):
        make_trainer(loader=loader)


def test_an_empty_loader_of_unknown_length(make_trainer) -> None:
    class Nothing(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(())

    trainer = make_trainer(loader=DataLoader(pairs(8), 4, sampler=Nothing()))
    with pytest.raises(ValueError, match="`loader` must yield at least one batch an epoch"):
        trainer.fit()


@pytest.mark.parametrize(
    ("loss", "got"), [(lambda m, b: m(b[0]), r"\(4, 3\)"), (lambda m, b: 1.0, "float")]
)
def test_a_loss_that_is_no_scalar(make_trainer, untyped, loss, got) -> None:
    with pytest.raises(ValueError, match=f"`loss` must return a 0-d tensor.*got {got}"):
        make_trainer(loss=loss).fit()


def test_no_average(make_trainer) -> None:
    trainer = make_trainer(ema_decay=None)
    trainer.fit()
    with pytest.raises(ValueError, match="`ema_decay` is None; use `model`"):
        trainer.ema_model  # noqa: B018
