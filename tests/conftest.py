"""For every test: shapes and dtypes are checked at run time, no network, few threads, no display."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # as in a worker; two on a busy machine can be 100 times slower
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import pytest
import torch
from jaxtyping import install_import_hook

torch.set_num_threads(1)
hypothesis.settings.register_profile("subspan", deadline=None)  # machines are shared: time is no verdict
hypothesis.settings.load_profile("subspan")
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"  # an int passes for a float
install_import_hook(["tasks.numerics", "tasks.methods"], CHECKER)

NO_GPU = "needs a CUDA device, and this machine has none"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is no GPU."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=NO_GPU))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests did not run, and how many of those for want of a GPU."""
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        no_gpu = sum(NO_GPU in str(report.longrepr) for report in skipped)
        terminalreporter.write_line(f"{len(skipped)} skipped, of these {no_gpu} for want of a GPU")
