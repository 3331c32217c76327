from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
)

from fm_ext.training.randomness import derive_seed, seed_epoch, seed_micro_step

CPU = torch.device("cpu")
DATA = TensorDataset(torch.arange(24))


class EpochSampler(Sampler[int]):
    """Has an order of its own for each epoch, and no generator."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.epoch)
        return iter(torch.randperm(24, generator=generator).tolist())

    def __len__(self) -> int:
        return 24


class EpochBatchSampler(BatchSampler):
    """The same, a batch at a time."""

    def __init__(self) -> None:
        super().__init__(EpochSampler(), 3, drop_last=False)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.epoch)
        return iter(torch.randperm(24, generator=generator).view(-1, 3).tolist())


class EpochStream(IterableDataset[list[torch.Tensor]]):
    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        generator = torch.Generator().manual_seed(self.epoch)
        return iter([[x] for x in torch.randperm(24, generator=generator)])


class GlobalSampler(EpochSampler):
    """Draws its order from torch's default generator."""

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(24).tolist())


PERSISTENT: dict[str, Any] = {"num_workers": 1, "persistent_workers": True}
LOADERS = {
    "shuffle": lambda: DataLoader(DATA, 3, shuffle=True),
    "shuffle with a generator": lambda: DataLoader(
        DATA, 3, shuffle=True, generator=torch.Generator()
    ),
    "random sampler": lambda: DataLoader(DATA, 3, sampler=RandomSampler(DATA)),
    "weighted": lambda: DataLoader(DATA, 3, sampler=WeightedRandomSampler([1.0] * 24, 24)),
    "epoch sampler": lambda: DataLoader(DATA, 3, sampler=EpochSampler()),
    "epoch batch sampler": lambda: DataLoader(DATA, batch_sampler=EpochBatchSampler()),
    "epoch stream": lambda: DataLoader(EpochStream(), 3),
    "workers": lambda: DataLoader(DATA, 3, shuffle=True, num_workers=1),
    "persistent workers": lambda: DataLoader(DATA, 3, shuffle=True, **PERSISTENT),
    "persistent workers, a generator": lambda: DataLoader(
        DATA, 3, shuffle=True, generator=torch.Generator(), **PERSISTENT
    ),
    "persistent workers, the global generator": lambda: DataLoader(
        DATA, 3, sampler=GlobalSampler(), **PERSISTENT
    ),
}


def order(loader: DataLoader, epoch: int, skip: int = 0) -> list[int]:
    torch.rand(7)  # whatever else draws numbers
    if skip:
        loader = skip_first_batches(loader, skip)
    seed_epoch(loader, 5, epoch, CPU)
    return torch.cat([batch[0] for batch in loader]).tolist()


@pytest.mark.parametrize("seedable", [False, True])
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("kind", LOADERS)
def test_order_is_a_function_of_the_epoch(kind, processes, seedable) -> None:
    def prepare(process: int) -> DataLoader:
        torch.default_generator.manual_seed(0)
        return prepare_data_loader(
            LOADERS[kind](),
            num_processes=processes,
            process_index=process,
            use_seedable_sampler=seedable,
        )

    loader = prepare(0)
    epochs = [order(loader, epoch) for epoch in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    fresh = prepare(0)  # a resumed run jumps into the middle of an epoch
    assert order(fresh, 2, skip=2) == epochs[2][6:]
    assert order(fresh, 1) == epochs[1]
    if kind != "weighted":
        seen = [i for process in range(processes) for i in order(prepare(process), 1)]
        assert sorted(seen) == list(range(24)), "each sample once, over all processes"


def test_noise_is_a_function_of_seed_step_micro_step_and_process() -> None:
    def noise(*key: int) -> float:
        torch.rand(3)
        seed_micro_step(*key, CPU)
        return torch.rand(()).item()

    keys = [(s, k, m, p) for s in (0, 1) for k in (0, 1) for m in (0, 1) for p in (0, 1)]
    draws = [noise(*key) for key in keys]
    assert draws == [noise(*key) for key in keys]
    assert len(set(draws)) == len(draws)


def test_seeds_do_not_depend_on_the_machine() -> None:
    assert derive_seed("step", 0, 1, 2, 3) == 8054951921626463916
    assert derive_seed("a", 11) != derive_seed("a", 1, 1)
