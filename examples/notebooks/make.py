"""Makes the notebooks from the scripts beside them, and runs them.

    pip install -e ".[dev]"
    python examples/notebooks/make.py                       # a quarter of an hour on one core
    python examples/notebooks/make.py own_model             # one of them
    python examples/notebooks/make.py --smoke --output /tmp/notebooks      # seconds: does every cell run?

Change the scripts, never the notebooks. `%% smoke="..."` is the head of a cell and ends up in its metadata: code that
`--smoke` runs after the cell, to make everything small.
"""

import argparse
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import jupytext
from nbclient import NotebookClient
from nbformat import NotebookNode, v4, write

FOLDER = Path(__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != Path(__file__).stem)
SMALL_FIGURES = "%config InlineBackend.print_figure_kwargs = {'dpi': 60, 'bbox_inches': 'tight'}"


def read(name: str) -> NotebookNode:
    """The notebook of a script, without outputs; the same for the same script."""
    notebook = jupytext.read(FOLDER / f"{name}.py")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{name}-{number}"
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def run(notebook: NotebookNode, client: NotebookClient) -> None:
    """Executes all cells in the client's kernel, in a fresh name space and with figures of low resolution."""
    notebook.cells.insert(0, v4.new_code_cell(f"%reset -f\n%matplotlib inline\n{SMALL_FIGURES}"))
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            client.execute_cell(cell, number)
            cell.metadata.pop("execution", None)  # when it ran, to the microsecond
            outputs = [out for out in cell.outputs if out.get("name") != "stderr"]  # progress bars
            cell.outputs = outputs
    del notebook.cells[0]
    for number, cell in enumerate(c for c in notebook.cells if c.cell_type == "code"):
        cell.execution_count = number + 1
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number + 1


def main(names: list[str], smoke: bool, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    client = NotebookClient(v4.new_notebook(), timeout=None, kernel_name="python3")
    with TemporaryDirectory() as folder, client.setup_kernel(cwd=folder):
        (Path(folder) / "fm_ext").symlink_to(FOLDER.parents[1])  # as it is in Colab
        for name in names:
            notebook = read(name)
            if smoke:
                for cell in notebook.cells:
                    cell.source += "\n" + cell.metadata.get("smoke", "")
            client.nb = notebook
            start = time.perf_counter()
            run(notebook, client)
            write(notebook, output / f"{name}.ipynb")
            size = (output / f"{name}.ipynb").stat().st_size
            print(f"{name}: {time.perf_counter() - start:.0f} s, {size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all of {', '.join(NAMES)}")
    parser.add_argument("--smoke", action="store_true", help="small, in a folder of its own")
    parser.add_argument("--output", type=Path, default=FOLDER)
    args = parser.parse_args()
    if args.smoke and args.output == FOLDER:
        parser.error("--smoke needs an --output, so as not to overwrite the notebooks")
    if unknown := [name for name in args.names if name not in NAMES]:
        parser.error(f"no notebook is called {unknown[0]!r}; there are {', '.join(NAMES)}")
    os.environ.setdefault("TQDM_DISABLE", "1")
    main(args.names or NAMES, args.smoke, args.output)
