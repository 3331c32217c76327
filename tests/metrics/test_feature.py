"""Laws of the features of many batches, on one process and on two."""

import json

import pytest
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchvision.transforms.v2.functional import gaussian_blur

from fm_ext.mask import Irregular
from fm_ext.metrics import FeatureMetrics, classifier, coverage, frechet_distance, jackknife

ALL = ("frechet", "kernel", "precision", "recall", "density", "coverage")
SETUP = """
import json, sys
import torch
from fm_ext.metrics import FeatureMetrics

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
generator = torch.Generator().manual_seed(0)
images = torch.randn(101, 1, 2, 3, generator=generator)
real = torch.rand(101, 1, 2, 3, generator=generator)
"""
SCRIPT = """
metrics = FeatureMetrics(lambda x: x.flatten(1), figures=FIGURES, resamples=5)
mine = slice(0, 40) if rank else slice(40, 101)  # in another order, unequal
for part, other in zip(images[mine].split(13), real[mine].split(13)):
    metrics.update(part, real=False)
    metrics.update(other, real=True)
result = {name: list(estimate) for name, estimate in metrics.compute().items()}
json.dump(result, open(f"{sys.argv[1]}/{rank}.json", "w"))
torch.distributed.destroy_process_group()
"""


def compute(images, real, batch, **settings):
    metrics = FeatureMetrics(nn.Flatten().eval(), **{"figures": ALL, "resamples": 5, **settings})
    for part in images.split(batch):
        metrics.update(part, real=False)
    for part in real.split(batch):
        metrics.update(part, real=True)
    return metrics.compute()


def data(generator):
    images = torch.randn(101, 1, 2, 3, generator=generator)
    return images, torch.rand(101, 1, 2, 3, generator=generator)


def test_is_the_functions_of_all_features(generator):
    images, real = data(generator)
    result = compute(images, real, 13)
    assert tuple(result) == ALL
    torch.testing.assert_close(result["frechet"].value, frechet_distance(images, real).item())
    torch.testing.assert_close(result["coverage"].value, coverage(images, real).item())
    assert all(estimate.count == 101 for estimate in result.values())


def test_calling_is_updating(generator):
    images, real = data(generator)
    metrics = FeatureMetrics(nn.Flatten().eval(), figures=("frechet",), resamples=2)
    assert metrics(images, real=False) is None and metrics(real, real=True) is None
    torch.testing.assert_close(
        metrics.compute()["frechet"].value, frechet_distance(images, real).item()
    )


def test_batches_and_order_do_not_matter(generator):
    images, real = data(generator)
    whole = compute(images, real, 101)
    shuffled = compute(images[torch.randperm(101)], real[torch.randperm(101)], 7)
    for name in ALL:
        torch.testing.assert_close(list(shuffled[name]), list(whole[name]))


def test_processes_do_not_matter(generator, two_processes):
    first, second = (
        json.loads(text) for text in two_processes(f"FIGURES = {ALL}\n{SETUP}{SCRIPT}")
    )
    assert first == second
    whole = compute(*data(generator), 101)
    for name in ALL:
        torch.testing.assert_close(first[name], list(whole[name]))


SPLIT = """
results = []
for case in ("one set each", "all on the first", "none"):
    metrics = FeatureMetrics(lambda x: x.flatten(1).double(), figures=("frechet",), resamples=5)
    if case == "one set each" and rank or case == "all on the first" and not rank:
        metrics.update(images, real=False)
    if case != "none" and not rank:
        metrics.update(real, real=True)
    try:
        results.append(list(metrics.compute()["frechet"]))
    except ValueError as error:
        results.append(str(error))
    counts = [sum(map(len, part)) for part in (metrics.samples, metrics.reference)]
    results.append(counts)
json.dump(results, open(f"{sys.argv[1]}/{rank}.json", "w"))
torch.distributed.destroy_process_group()
"""


def test_a_process_may_have_no_images_of_a_set(generator, two_processes):
    first, second = (json.loads(text) for text in two_processes(SETUP + SPLIT))
    whole = list(compute(*data(generator), 101, figures=("frechet",))["frechet"])
    for estimate in (first[0], second[0], first[2], second[2]):
        torch.testing.assert_close(estimate, whole)
    assert "must have been called with real=True and" in first[4] and first[4] == second[4]
    counts = [first[1::2], second[1::2]]  # what each has of its own is what it had
    assert counts == [[[0, 101], [101, 101], [0, 0]], [[101, 0], [0, 0], [0, 0]]]


def test_is_torchmetrics_with_its_own_extractor(generator):
    """An extractor that torchmetrics takes, ours takes; ours in float64, theirs in float32."""
    extractor = nn.Sequential(nn.Flatten(), nn.Linear(12, 5).requires_grad_(False))
    extractor.eval().num_features = 5
    images, real = torch.randint(0, 255, (2, 200, 3, 2, 2), generator=generator).float()
    theirs = FrechetInceptionDistance(extractor, normalize=False, input_img_size=(3, 2, 2))
    ours = FeatureMetrics(theirs.inception, figures=("frechet",), resamples=2)
    for metric in (theirs, ours):
        metric.update(images, real=False)
        metric.update(real, real=True)
    torch.testing.assert_close(
        ours.compute()["frechet"].value, theirs.compute().item(), rtol=1e-3, atol=1e-2
    )


@pytest.mark.filterwarnings("ignore:The ..compute.. method of metric:UserWarning")
def test_reset_and_gradients(generator):
    images, _ = data(generator)
    metrics = FeatureMetrics(
        nn.Sequential(nn.Flatten(), nn.Linear(6, 2)).eval(), figures=("frechet",)
    )
    metrics.update(images, real=False)
    assert not metrics.samples[0].requires_grad
    metrics.reset()
    with pytest.raises(ValueError, match="`update` must have been called with real=True and"):
        metrics.compute()


@pytest.mark.parametrize("kind", ["blur", "noise"])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_blur_and_noise_grow_the_distance(name, kind):
    """In the shipped features, on strokes that are no digits."""
    network = classifier(name)
    strokes = Irregular()(200, (28, 28)).float() * 2 - 1
    noise = torch.randn_like(strokes)
    values = []
    for level in (0.0, 0.4, 0.8, 1.6):
        images = (strokes + level * noise).clamp(-1, 1)
        if kind == "blur" and level:
            images = gaussian_blur(strokes, [13, 13], [level, level])
        values.append(frechet_distance(network.features(images), network.features(strokes)))
    assert torch.stack(values).diff().gt(0).all()


def test_errors(generator, untyped):
    images, real = data(generator)
    with pytest.raises(ValueError, match=r"`figures` must be some of .*; got .'fid'."):
        FeatureMetrics(nn.Flatten().eval(), figures=("fid",))
    with pytest.raises(ValueError, match=r"`extractor` must return \(batch, features\), 101 rows"):
        FeatureMetrics(nn.Identity().eval()).update(images, real=True)
    with pytest.raises(ValueError, match="`resamples` must be at least 2; got 0"):
        FeatureMetrics(nn.Flatten().eval(), resamples=0)
    extractor = nn.Sequential(nn.Flatten(), nn.Dropout()).eval()
    metrics = FeatureMetrics(extractor)
    metrics.train()
    with pytest.raises(ValueError, match="`extractor` must be in eval mode"):
        metrics.update(images, real=True)
    with pytest.raises(
        ValueError, match=r"half of the rows, \[5, 5\] of \[11, 11\].*at least 6 rows"
    ):
        compute(images[:11], real[:11], 50, figures=("coverage",))
    with pytest.raises(ValueError, match=r"must have equally many rows.*got 90 and 101"):
        compute(images[:90], real, 50)
    with pytest.raises(
        ValueError, match=r"more than twice as many as the features.*12 with 6 feat"
    ):
        compute(images[:12], real[:12], 50)
    result = compute(images[:12], real[:12], 50, figures=("kernel",))
    assert jackknife(lambda x: x.mean(), images).count == 101 and result["kernel"].count == 12
