import os
import shutil

# One BLAS thread: spinning threads collapse where cores are shared. Set before NumPy loads.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and tables are cut to it

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from small_runs import SIZE, SMALL

from rankscope.training import TrainingConfig, train

# No deadline: the first LAPACK call of a process is slow by chance.
settings.register_profile(
    "fast", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fast")

ROOT = Path(__file__).parent.parent


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def data():
    return ROOT / "data"


@pytest.fixture(scope="session")
def real():
    folder = ROOT.parent / "shared" / "real"
    if not folder.is_dir():
        pytest.skip("the published adapters of ../shared/real are not here")
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """Return the folder of a tiny pre-trained model."""
    out = tmp_path_factory.mktemp("base") / "base"
    train(TrainingConfig(**SMALL, **SIZE), out, progress=False)
    return out


# Not for the whole session: playwright's event loop would be in the way of other tests'.
@pytest.fixture(scope="module")
def chromium():
    """Return a running Chromium, driven by playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("there is no chromium here: apt-get install chromium")
    with playwright.sync_playwright() as started:
        # CI runs as root, where Chromium's sandbox does not start.
        running = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()
