"""Every registered scheduler, by name, upstream's among them."""

import pytest
import torch

ARGUMENTS = {
    "polynomial": {"n": 2},
    "beta_table": {"betas": torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square()},
    "shifted": {"scheduler": {"name": "cosine"}, "shift": 3.0},
    "shifted_convex": {"scheduler": {"name": "cond_ot"}, "shift": 3.0},
}
VARIANTS = {
    "polynomial_3.5": ("polynomial", {"n": 3.5}),
    "iddpm_cosine_0.2": ("iddpm_cosine", {"s": 0.2}),
    "vp_constant": ("vp", {"beta_min": 5.0, "beta_max": 5.0}),
    "beta_table_zero": ("beta_table", {**ARGUMENTS["beta_table"], "zero_terminal_snr": True}),
    "sigmoid_skew": ("sigmoid", {"start": -1.0, "end": 8.0}),
    "edm_linear": ("edm", {"rho": 1.0}),
    "shifted_vp": ("shifted", {"scheduler": {"name": "vp"}, "shift": 0.5}),
    "shifted_upstream_vp": ("shifted", {"scheduler": {"name": "upstream_vp"}, "shift": 2.0}),
}
UPSTREAM = ("cond_ot", "polynomial", "polynomial_3.5", "upstream_cosine", "upstream_vp")
UPSTREAM += ("upstream_linear_vp",)
# Their first or last signal-to-noise ratio is not 0 or infinity, by definition.
NOISE_OUT_OF_REACH = ("vp", "vp_constant", "beta_table", "edm", "edm_linear", "ve")
NOISE_OUT_OF_REACH += ("shifted_vp", "shifted_upstream_vp")
DATA_OUT_OF_REACH = ("beta_table", "beta_table_zero", "edm", "edm_linear", "ve")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`case` runs a test for the name of every scheduler, `our_case` for those that are not upstream's."""
    from fm_ext.path.scheduler import scheduler_names

    cases = [*scheduler_names(), *VARIANTS]
    ours = [name for name in cases if name not in UPSTREAM]
    for fixture, names in (
        ("case", cases),
        ("our_case", ours),
        ("noise_case", [name for name in ours if name not in NOISE_OUT_OF_REACH]),
        ("data_case", [name for name in ours if name not in DATA_OUT_OF_REACH]),
    ):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, names)


@pytest.fixture
def make():
    """Builds the scheduler of a case."""
    from fm_ext.path.scheduler import get_scheduler

    def make(case):
        name, arguments = VARIANTS.get(case, (case, ARGUMENTS.get(case, {})))
        return get_scheduler(name, **arguments)

    return make
