"""Whatever comes in, a mask is drawn inside its bounds or an error names the argument."""

import re
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fm_ext.mask import (
    CenterBox,
    FreeForm,
    Hybrid,
    Irregular,
    RandomBox,
    RandomEntries,
    RandomSpans,
)

pytestmark = pytest.mark.usefixtures("untyped")
cases = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

ends = st.sampled_from([-1, 0, 1, 2, 0.0, 0.1, 0.25, 0.5, 1.0, 1.5, float("nan"), "1", None])
intervals = st.one_of(
    st.tuples(ends, ends),
    st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda pair: tuple(sorted(pair))),
    st.sampled_from([0.5, None, (0.5,), (0, 0.5, 1), [0.2, 0.4]]),
)
FIELDS: dict[Any, tuple[str, ...]] = {
    CenterBox: ("area", "side"),
    RandomBox: ("area", "side"),
    FreeForm: ("area", "strokes", "segments", "length", "width", "turn"),
    Irregular: ("area", "strokes", "segments", "length", "width"),
    RandomEntries: ("area",),
    RandomSpans: ("area", "spans"),
    Hybrid: ("area",),
}


@cases
@given(
    kind=st.sampled_from(list(FIELDS)),
    batch=st.sampled_from([-1, 0, 1, 3, 2.0, None, "2"]),
    size=st.sampled_from(
        [
            (8, 8),
            (1, 1),
            (9,),
            (0,),
            [6],
            (1, 9),
            (17, 5),
            [6, 6],
            (0, 4),
            (3, 8, 8),
            8,
            8.0,
            (8.0, 8),
            None,
            "88",
        ]
    ),
    data=st.data(),
)
def test_masks(kind, batch, size, data) -> None:
    names = data.draw(st.lists(st.sampled_from(FIELDS[kind]), max_size=2, unique=True))
    fields = {name: data.draw(intervals) for name in names}
    try:
        mask = kind(**fields)
        drawn = mask(batch, size)
    except (ValueError, TypeError) as error:
        assert re.search(r"^`\w+` ", str(error)), (
            f"a foreign error: {type(error).__name__}: {error}"
        )
        return
    assert drawn.shape == (batch, 1, *size) and drawn.dtype == torch.bool
    low, high = mask.area
    assert all(
        low <= count / drawn[0].numel() <= high for count in drawn.flatten(1).sum(1).tolist()
    )
