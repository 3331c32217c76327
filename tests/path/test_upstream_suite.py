"""Upstream's own tests of paths, from its wheel, with our classes in place of theirs."""

import subprocess
import sys

PLUGIN = """
import flow_matching.path as paths
import flow_matching.path.scheduler as schedulers

import fm_ext.path as our_paths
import fm_ext.path.scheduler as our_schedulers

swapped = []
for theirs, ours in ((paths, our_paths), (schedulers, our_schedulers)):
    for name in set(theirs.__all__) & set(ours.__all__):
        setattr(theirs, name, getattr(ours, name))
        swapped.append(name)


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line("swapped " + " ".join(sorted(swapped)))
"""


def test_upstreams_tests_pass_with_our_classes(tmp_path, request):
    (tmp_path / "swap.py").write_text(PLUGIN)
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(request.config.rootpath)!r}]; "
    code += "import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    run = subprocess.run(
        # Imported by -c, from a folder without tests: `tests` must be the wheel's.
        [
            sys.executable,
            "-c",
            code,
            "-q",
            "-p",
            "swap",
            "-p",
            "no:cacheprovider",
            "--pyargs",
            "tests.path",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout and " skipped" not in run.stdout
    assert (
        "swapped AffineProbPath CondOTProbPath CosineScheduler LinearVPScheduler ProbPath "
        "ScheduleTransformedModel VPScheduler" in run.stdout
    )
