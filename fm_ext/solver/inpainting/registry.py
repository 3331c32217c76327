"""The names of the methods."""

import difflib
from dataclasses import fields

from fm_ext.solver.inpainting.d_flow import DFlow
from fm_ext.solver.inpainting.guided import OTODE, MomentMatching
from fm_ext.solver.inpainting.method import Method
from fm_ext.solver.inpainting.renoising import Flower, PnPFlow
from fm_ext.solver.inpainting.replacement import RePaint, Replace, RestoraFlow
from fm_ext.solver.inpainting.twisted import TwistedSMC

METHODS: dict[str, type[Method]] = {
    "d_flow": DFlow,
    "flower": Flower,
    "moment_matching": MomentMatching,
    "ot_ode": OTODE,
    "pnp": PnPFlow,
    "repaint": RePaint,
    "replace": Replace,
    "restora": RestoraFlow,
    "twisted_smc": TwistedSMC,
}


def get_method(name: str, options: dict[str, object]) -> Method:
    """The method called `name`, with its options.

    Raises:
        ValueError: for an unknown name, or an option outside its range.
        TypeError: for an option that the method does not have.
    """
    if name not in METHODS:
        nearest = difflib.get_close_matches(str(name), METHODS, n=1)
        raise ValueError(
            f"`method` must be one of {', '.join(METHODS)}; got {name!r}."
            + (f" Did you mean {nearest[0]!r}?" if nearest else "")
        )
    known = [field.name for field in fields(METHODS[name])]  # pyright: ignore[reportArgumentType]
    if unknown := [key for key in options if key not in known]:
        raise TypeError(
            f"method {name!r} takes {', '.join(f'`{key}`' for key in known) or 'no options'}; "
            f"got {', '.join(f'`{key}`' for key in unknown)}."
        )
    return METHODS[name](**options)
