"""Starts the app's server."""

import argparse
from collections.abc import Sequence
from pathlib import Path

try:
    import streamlit.web.cli
except ModuleNotFoundError as error:
    raise ImportError('the app needs Streamlit: pip install "fm_ext[app]"') from error

OPTIONS = (
    "--browser.gatherUsageStats=false",
    "--client.showErrorDetails=type",  # a traceback goes to the terminal
    "--client.toolbarMode=minimal",
    "--server.fileWatcherType=none",  # the code does not change, and torch's modules are many
    "--server.maxUploadSize=200",  # MB
    "--server.showEmailPrompt=false",
)


def run(arguments: Sequence[str] | None = None) -> int:
    """Serves the app until it is interrupted: `python -m fm_ext app`.

    Args:
        arguments: those of the command line; None: the process's.

    Returns:
        The status of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m fm_ext app", description="Fill, generate and translate in the browser."
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        help="a folder or owner/name on the hub that the page offers beside the shipped models; may be repeated",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--port", type=int, default=8501)
    parser.add_argument(
        "--address",
        default="localhost",
        help="localhost: this machine alone; 0.0.0.0: every machine that reaches this one, and who opens the page may "
        "then name models on the hub and folders of this machine",
    )
    parser.add_argument("--no-browser", action="store_true", help="do not open a browser")
    args = parser.parse_args(arguments)
    server = [f"--server.port={args.port}", f"--server.address={args.address}"]
    server += ["--server.headless=true"] if args.no_browser else []
    page = Path(__file__).with_name("page.py")
    command = ["run", str(page), *OPTIONS, *server, "--", args.device, *args.model]
    return streamlit.web.cli.main(command, standalone_mode=False) or 0
