"""Laws of drawing samples: neither batches nor processes change them."""

import json

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from fm_ext.sampling import EvaluationCounter, draw_samples, indexed_noise

MODEL = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 1, 3, padding=1))
    seen = {}

    def sample(noise, label):
        for row, number in zip(noise, label.tolist()):
            seen[number] = row.clone()
        x = noise
        for _ in range(4):
            x = x + 0.25 * net(x)
        return 0.3 * x

    return net, sample, seen
"""
SCRIPT = """
import json, sys
from accelerate import Accelerator
from fm_ext.sampling import draw_samples

accelerator = Accelerator()
net, sample, seen = make()
samples = draw_samples(
    sample, 101, (1, 6, 6), batch_size=37, accelerator=accelerator, network=net, label=torch.arange(101)
)
result = {
    "noise": {number: row.tolist() for number, row in seen.items()},
    "images": samples.images.tolist(),
    "label": samples.label.tolist(),
    "evaluations": samples.evaluations,
}
json.dump(result, open(f"{sys.argv[1]}/{accelerator.process_index}.json", "w"))
accelerator.end_training()
"""


@pytest.fixture
def model():
    scope = {}
    exec(MODEL, scope)
    return scope["make"]()


def draw(model, count=101, batch_size=100, **settings):
    net, sample, _ = model
    label = {"label": torch.arange(count)} | settings
    return draw_samples(sample, count, (1, 6, 6), batch_size=batch_size, network=net, **label)


def test_two_processes_are_one(model, two_processes):
    """1 process x batch 100 = 2 processes x batch 37: equal noise, and images to one level in 255."""
    alone = draw(model)
    first, second = (json.loads(text) for text in two_processes(MODEL + SCRIPT))
    assert first["images"] == second["images"] and first["label"] == list(range(101))
    assert not first["noise"].keys() & second["noise"].keys()
    noise = first["noise"] | second["noise"]
    assert len(noise) == 101
    for number, row in model[2].items():
        assert torch.equal(torch.tensor(noise[str(number)]), row)
    difference = torch.tensor(first["images"]) - alone.images.int()
    assert difference.abs().max() <= 1 and difference.ne(0).double().mean() < 0.01
    assert first["evaluations"] == second["evaluations"] == alone.evaluations == 4


@pytest.mark.parametrize("batch_size", [1, 7, 200])
def test_batches_do_not_matter(model, batch_size):
    whole, parts = draw(model), draw(model, batch_size=batch_size)
    assert (whole.images.int() - parts.images.int()).abs().max() <= 1
    assert parts.images.shape == (101, 1, 6, 6)


def test_more_samples_begin_with_the_fewer(model):
    few, many = draw(model, count=20), draw(model, count=40)
    assert (few.images.int() - many.images[:20].int()).abs().max() <= 1


def test_another_seed_is_other_noise(model):
    assert not torch.equal(draw(model).images, draw(model, seed=1).images)


def test_conditions_go_with_their_sample():
    shade = torch.linspace(-1, 1, 30)

    def sample(noise, shade, other):
        assert other.shape == (len(noise), 2)
        return shade.view(-1, 1, 1, 1).expand_as(noise)

    samples = draw_samples(
        sample, 30, (3, 2, 2), batch_size=7, shade=shade, other=torch.zeros(30, 2)
    )
    torch.testing.assert_close(samples.to_float()[:, 0, 0, 0], shade, atol=1 / 255, rtol=0)
    assert samples.label is None and samples.evaluations is None and samples.seconds > 0


def test_no_gradient_and_no_trace_in_the_global_state(model):
    state = torch.get_rng_state()
    net, _, _ = model
    flags = []
    draw_samples(lambda x: flags.append(net(x).requires_grad) or x, 5, (1, 6, 6), batch_size=5)
    assert flags == [False]
    assert torch.equal(torch.get_rng_state(), state)


def test_guidance_counts_twice():
    """By two calls or by a double batch; times and labels are no samples."""

    class Net(nn.Module):
        def forward(self, t, *, x, label=None):
            return x

    net = Net()
    x, t, label = torch.randn(8, 1, 6, 6), torch.tensor(0.5), torch.arange(8)
    with EvaluationCounter(net) as counter:
        net(t, x=x), net(t, x=x, label=label)
        net(torch.rand(16), x=torch.cat([x, x]))
    net(t, x=x)
    assert (counter.calls, counter.evaluations) == (3, 32)


def test_the_device_is_the_accelerators():
    places = []
    accelerator = Accelerator(cpu=True)
    draw_samples(
        lambda x, label: places.append((x.device, label.device)) or x,
        4,
        (1, 2, 2),
        batch_size=4,
        accelerator=accelerator,
        label=torch.arange(4),
    )
    assert places == [(accelerator.device,) * 2]


def test_a_network_that_is_not_called_is_no_count_of_0():
    other = torch.nn.Flatten()
    for sample in (lambda x: x, lambda x: other.forward(x).view_as(x)):
        with pytest.raises(ValueError, match="`network` must be the module that `sample` calls"):
            draw_samples(sample, 8, (1, 6, 6), batch_size=4, network=other)


def test_errors(model, untyped):
    for settings, message in (
        ({"batch_size": 0}, "`count` and `batch_size` must be at least 1; got 101 and 0"),
        (
            {"label": torch.arange(7)},
            r"`label` must be a tensor with one row for each of 101 samples; got \(7,\)",
        ),
        ({"label": [0] * 101}, "`label` must be a tensor with one row.*got list"),
        ({"label": torch.tensor(3)}, r"`label` must be a tensor with one row.*got \(\)"),
        ({"seed": -1}, r"`seed` and the numbers in `index` must lie in 0..2\*\*64 - 1"),
    ):
        with pytest.raises(ValueError, match=message):
            draw(model, **settings)
    with pytest.raises(ValueError, match=r"`sample` must return images.*8 here; got \(8, 36\)"):
        draw_samples(lambda x: x.flatten(1), 8, (1, 6, 6), batch_size=8)
    with pytest.raises(ValueError, match="`images` must be finite"):
        draw_samples(lambda x: x / 0, 8, (1, 6, 6), batch_size=8)


def test_noise_is_normal_and_of_its_number(untyped):
    noise = indexed_noise(range(2000), (3, 4, 4))
    assert abs(noise.mean()) < 0.015 and abs(noise.std() - 1) < 0.01
    torch.testing.assert_close(indexed_noise([7, 3], (3, 4, 4)), noise[[7, 3]], rtol=0, atol=0)
    covariance = noise.flatten(1).corrcoef() - torch.eye(2000)  # between samples: 48 numbers each
    assert covariance.abs().max() < 6.5 / 48**0.5
    assert len({tuple(row) for row in noise[:, 0, 0, :2].tolist()}) == 2000
    other = indexed_noise(range(2000), (3, 4, 4), seed=1)
    assert abs((noise * other).mean()) < 0.015


def test_noise_stays_what_it_was():
    """Recorded: published figures rest on it."""
    expected = torch.tensor([[2.3080, 0.6595], [-0.2366, 0.5545]])
    noise = indexed_noise([0, 2**40], (2,), seed=2**63)
    torch.testing.assert_close(noise, expected, atol=5e-5, rtol=0)


def test_bad_index(untyped):
    for index in ([3, -1], [2**64]):
        with pytest.raises(ValueError, match=r"`seed` and the numbers in `index` must lie in"):
            indexed_noise(index, (2,))
    with pytest.raises(TypeError, match="integer"):
        indexed_noise([1.7], (2,))
    with pytest.raises(TypeError, match="integer"):
        indexed_noise([1], (2,), seed=0.5)
    with pytest.raises(ValueError, match="`shape` must have at least one axis"):
        indexed_noise([1], ())
