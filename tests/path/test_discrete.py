"""A masked discrete path under upstream's loss and solver: the infilling example of guides/inpainting.md."""

import pytest
import torch
from flow_matching.loss import MixturePathGeneralizedKL
from flow_matching.path import MixtureDiscreteProbPath
from flow_matching.path.scheduler import PolynomialConvexScheduler
from flow_matching.solver import MixtureDiscreteEulerSolver
from flow_matching.utils import ModelWrapper

from fm_ext.coupling import OptimalTransport
from fm_ext.models import MaskedVelocityModel
from fm_ext.path import CoupledProbPath, MaskedProbPath

VOCABULARY, LENGTH = 5, 6
NAMES = (
    MaskedProbPath,
    MixtureDiscreteProbPath,
    PolynomialConvexScheduler,
    MixturePathGeneralizedKL,
    MaskedVelocityModel,
    MixtureDiscreteEulerSolver,
)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = torch.nn.Parameter(torch.zeros(LENGTH, VOCABULARY))

    def forward(self, x, t, mask=None):
        return self.logits.expand(len(x), -1, -1)


class Probabilities(ModelWrapper):
    def forward(self, x, t, **extras):
        return self.model(x=x, t=t, **extras).softmax(-1)


def example():
    noise, tokens = torch.randint(VOCABULARY, (2, 4, LENGTH))
    names = {c.__name__: c for c in NAMES} | {"torch": torch, "Probabilities": Probabilities}
    mask = torch.rand(4, LENGTH) < 0.5
    names |= {"noise": noise, "tokens": tokens, "t": torch.rand(4), "mask": mask}
    return names | {"network": Network(), "VOCABULARY": VOCABULARY}


def test_the_example_of_the_docs_leaves_known_tokens(request):
    page = (request.config.rootpath / "docs/content/guides/inpainting.md").read_text()
    code = page.split("## Tokens")[1].split("```python\n")[1].split("```")[0]
    names = example()
    exec(code, names)
    known = ~names["mask"]
    assert torch.equal(names["filled"][known], names["tokens"][known])
    gradient = names["network"].logits.grad
    assert gradient.isfinite().all() and gradient.any()


@pytest.mark.parametrize("batch", [1, 4])
def test_the_posterior_is_sampled_in_the_hole_through_both_wrappers(batch):
    path = MixtureDiscreteProbPath(PolynomialConvexScheduler(1))
    cost = lambda x_1, x_0, mask=None: (x_1[:, None] != x_0).sum(-1)
    path = MaskedProbPath(CoupledProbPath(path, OptimalTransport(cost=cost)))
    network = Network()
    with torch.no_grad():
        network.logits[:, 3] = 50  # certain of token 3
    solver = MixtureDiscreteEulerSolver(
        MaskedVelocityModel(Probabilities(network)), path, VOCABULARY, torch.full((5,), 0.2)
    )
    x = torch.zeros(batch, LENGTH, dtype=torch.int64)
    mask = torch.arange(LENGTH) % 2 == 0
    mask = mask.expand(batch, -1)
    filled = solver.sample(x, step_size=0.1, mask=mask)
    assert torch.equal(filled, torch.where(mask, 3, x))
    grid = torch.tensor([0.1, 1.0])
    moved = solver.sample(x, step_size=0.1, mask=mask, div_free=5.0, time_grid=grid)
    assert (moved != x)[~mask].any()  # as the docs say
