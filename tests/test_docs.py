"""The code of the pages for newcomers runs, block after block, as a reader would type it; the figures are drawn."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs/content/start").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page, monkeypatch, tmp_path):
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    for peer in ("diffusers", "torchcfm"):
        if f"from {peer}" in code:
            pytest.importorskip(peer)
    code = re.sub(r"steps=\d{3,}", "steps=2", code)  # of training
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, page.name, "exec"), {})


def test_the_figures_of_the_guides_are_drawn(tmp_path):
    figures = runpy.run_path(str(ROOT / "docs/figures.py"))["FIGURES"]
    small = {
        "methods": {"samples": 3},
        "fills": {"steps": 2},
        "portraits": {"steps": 2},
        "fill": {"steps": 2},
        "translate": {"steps": 2},
        "generate": {"steps": 2},
        "transport": {"training_steps": 2, "steps": 2},
    }
    for name, draw in figures.items():
        draw(tmp_path, **small.get(name, {}))
    shown = {path.name for path in (ROOT / "docs/content/images").iterdir()}
    drawn = {path.name for path in tmp_path.iterdir()}
    assert len(drawn) == len(figures) and drawn <= shown
    for film in (ROOT / "docs/content/images").glob("*.gif"):
        assert film.stat().st_size < 1_000_000
