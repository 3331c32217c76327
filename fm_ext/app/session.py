"""The state that a session keeps between two runs of the page. Sessions share only models that load by name."""

from collections.abc import Callable, Hashable
from typing import TypeVar

import streamlit as st

T = TypeVar("T")


def remember(place: str, token: Hashable, make: Callable[[], T]) -> T:
    """What `make()` has given for this token; only the last token of a place is kept."""
    known = st.session_state.get(place)
    if known is None or known[0] != token:
        known = st.session_state[place] = (token, make())
    return known[1]
