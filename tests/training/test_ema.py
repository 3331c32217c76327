import copy
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fm_ext.training import ExponentialMovingAverage


def test_the_average_of_a_constant_is_the_constant(net) -> None:
    average = ExponentialMovingAverage(net, 0.99)
    for _ in range(5):
        average.update(net)
    for mine, theirs in zip(average.module.parameters(), net.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("decay", [0.25, 0.999])
def test_the_average_follows_the_recurrence(net, generator, decay) -> None:
    net = net.double()
    average = ExponentialMovingAverage(net, decay)
    expected = [p.detach().clone() for p in net.parameters()]
    for n in range(1, 30):
        d = min(decay, (1 + n) / (10 + n))
        for i, p in enumerate(net.parameters()):
            p.data = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            expected[i] = d * expected[i] + (1 - d) * p.detach()
        average.update(net)
    assert average.updates == 29
    torch.testing.assert_close(list(average.module.parameters()), expected)


def test_buffers_are_copied(net) -> None:
    average = ExponentialMovingAverage(net, 0.99)
    net(torch.randn(4, 3))
    average.update(net)
    for mine, theirs in zip(average.module.buffers(), net.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_averaged_module_is_its_own_and_ready_to_sample(net) -> None:
    average = ExponentialMovingAverage(net.train(), 0.99)
    assert type(average.module) is type(net)
    assert not average.module.training
    assert not any(p.requires_grad for p in average.module.parameters())
    before = copy.deepcopy(average.module.state_dict())
    for p in net.parameters():
        p.data.add_(1)
    torch.testing.assert_close(average.module.state_dict(), before, rtol=0, atol=0)


def test_restart_forgets(net) -> None:
    average = ExponentialMovingAverage(net, 0.99)
    average.update(net)
    for p in net.parameters():
        p.data.add_(1)
    average.restart(net)
    assert average.updates == 0
    torch.testing.assert_close(average.module.state_dict(), net.state_dict(), rtol=0, atol=0)
    for mine, theirs in zip(average.module.parameters(), net.parameters(), strict=True):
        assert mine.data_ptr() != theirs.data_ptr()


def test_errors(net) -> None:
    with pytest.raises(ValueError, match=r"`decay` must lie in \(0, 1\); got 1.0"):
        ExponentialMovingAverage(net, 1.0)
    with pytest.raises(
        ValueError, match=r"`module` must hold float32 .*`weight` is torch.bfloat16"
    ):
        ExponentialMovingAverage(nn.Linear(2, 2).bfloat16(), 0.99)


def test_a_frozen_encoder_may_be_in_half_precision(make_trainer, tmp_path) -> None:
    """It is copied, not averaged; frozen integers (quantised weights) too. Unfrozen it is refused."""

    class Encoded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(3, 3).bfloat16().requires_grad_(False)
            self.table = nn.Parameter(torch.arange(3), requires_grad=False)
            self.head = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.encoder(x.bfloat16()).float() + self.table)

    def loss(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
        return model(batch[0]).square().mean()

    trainer = make_trainer(model=Encoded(), loss=loss, save_every=4, output_dir=tmp_path)
    trainer.fit()
    mine, theirs = trainer.ema_model, trainer.model
    assert torch.equal(mine.encoder.weight, theirs.encoder.weight)
    assert torch.equal(mine.table, theirs.table)
    assert not torch.equal(mine.head.weight, theirs.head.weight)
    average = ExponentialMovingAverage(theirs, 0.99)
    theirs.encoder.requires_grad_(True)
    with pytest.raises(ValueError, match=r"`module` must hold float32 .*`encoder.weight` is"):
        average.update(theirs)
    ExponentialMovingAverage(theirs.float(), 0.99).update(theirs)  # one half of the advice


class Shared(nn.Module):
    """Buffers and parameters that are memory of one another, whole and in part."""

    def __init__(self) -> None:
        super().__init__()
        flat = torch.arange(1.0, 13)
        self.weight = nn.Parameter(flat[:6].view(2, 3))
        self.again = nn.Parameter(self.weight.data)
        self.row = nn.Parameter(self.weight.data[:1])
        self.register_buffer("ref", self.weight.data)
        self.register_buffer("statistic", flat[6:])


def test_shared_memory_is_averaged_once_and_stays_shared() -> None:
    net = Shared()
    average = ExponentialMovingAverage(net, 0.5)
    average.restart(net)
    expected, start = net.weight.detach().clone(), net.weight.detach().clone()
    for n in range(1, 6):
        net.weight.data.copy_(start + n)
        net.statistic.copy_(torch.full((6,), float(n)))
        d = min(0.5, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * (start + n)
        average.update(net)
    mine = average.module
    for tensor in (mine.weight, mine.again, mine.ref):
        torch.testing.assert_close(tensor.detach(), expected)
        assert tensor.data_ptr() == mine.weight.data_ptr()
    torch.testing.assert_close(mine.row.detach(), expected[:1])
    assert torch.equal(mine.statistic, net.statistic), "a buffer is copied, whose memory it shares"


class Keeping(nn.Module):
    """Keeps what it computes: as an attribute, in a list, in an object, in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.kept: list[object] = []
        self.register_buffer("last", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.hidden = self.last = self.linear(x).mean(0)
        self.kept.append({"hidden": (self.hidden, SimpleNamespace(value=self.hidden * 2))})
        return self.linear(x)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["kept", "weight_norm", "new weight_norm", "spectral_norm"])
def test_what_has_a_history_is_copied_without_it(kind, generator) -> None:
    net = Keeping()
    if kind == "weight_norm":
        net = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 3)))
    elif kind == "new weight_norm":
        net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    elif kind == "spectral_norm":
        net = nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 3)))
    x = torch.randn(4, 3, generator=generator)
    net(x)
    average = ExponentialMovingAverage(net, 0.99)
    average.update(net)
    torch.testing.assert_close(average.module(x), net.eval()(x))
    if kind == "kept":
        assert average.module.kept[0]["hidden"][0].is_leaf


def test_a_module_that_cannot_be_copied(make_trainer, net) -> None:
    net.lock = threading.Lock()
    with pytest.raises(ValueError, match=r"`module` must be copyable .*lock.* ema_decay=None"):
        make_trainer(model=net)
    make_trainer(model=net, ema_decay=None).fit()
