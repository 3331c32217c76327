import copy

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
