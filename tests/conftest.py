import os

# One BLAS thread: spinning threads collapse where cores are shared. Set before NumPy loads.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "Agg")

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

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
