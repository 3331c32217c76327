"""The models that come with the package load by name, without network, and do what their card says."""

import re
from pathlib import Path

import pytest
import torch

import fm_ext.hub
from fm_ext.data import load_images
from fm_ext.hub import FlowModel, shipped_names
from fm_ext.metrics import classifier, hole_psnr

WEIGHTS = Path(fm_ext.hub.__file__).parent / "weights"


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_model_is_small_measured_and_loads_by_name(name):
    flow = FlowModel.from_pretrained(name)
    assert sum(file.stat().st_size for file in (WEIGHTS / name).iterdir()) < 5e6
    assert flow.measured.metrics and flow.measured.data_licence and flow.measured.command
    card = (WEIGHTS / name / "README.md").read_text()
    assert card == str(flow.generate_model_card())


@pytest.mark.parametrize("name", shipped_names("fill"))
def test_a_hole_is_filled_better_than_by_the_mean_of_what_is_known(name, request, generator):
    flow = FlowModel.from_pretrained(name)
    data = request.config.rootpath / "examples/data" / {1: "mnist", 3: "portraits"}[flow.shape[0]]
    image, _ = load_images(data, limit=8)
    mask = torch.zeros(8, 1, *flow.shape[1:], dtype=torch.bool)
    side = flow.shape[1] // 4
    mask[..., side : 2 * side, side : 3 * side] = True
    filled = flow.fill(image, mask, generator=generator)
    mean = (image * ~mask).sum((2, 3), keepdim=True) / (~mask).sum((2, 3), keepdim=True)
    assert hole_psnr(filled, image, mask) > hole_psnr(torch.where(mask, mean, image), image, mask)


@pytest.mark.parametrize("name", shipped_names("sample"))
def test_digits_of_a_class_are_read_as_that_class(name, generator):
    label = torch.arange(20) % 10
    drawn = FlowModel.from_pretrained(name).sample(20, label=label, generator=generator)
    assert (classifier("mnist")(drawn).argmax(1) == label).float().mean() > 0.8


@pytest.mark.parametrize("name", shipped_names("translate"))
def test_garments_become_digits(name, request, generator):
    image, _ = load_images(request.config.rootpath / "examples/data/fashion_mnist", limit=16)
    turned = FlowModel.from_pretrained(name).translate(image, generator=generator)
    sure = [
        (classifier("mnist")(x).softmax(1).amax(1) > 0.9).float().mean() for x in (image, turned)
    ]
    assert sure[1] > sure[0] + 0.1


def test_the_code_of_the_docs_page_runs(request):
    page = (request.config.rootpath / "docs/content/guides/hub.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile("\n".join(blocks), "docs/content/guides/hub.md", "exec"), {"__name__": "hub_md"})
