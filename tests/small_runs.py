"""What the tests of training share: tiny runs, and what they write."""

import pytest

from rankscope.training import TrainingConfig

SMALL = {"steps": 6, "batch": 2, "held_out": 4, "threads": 1, "save_every": 2}
SIZE = {"layers": 2, "width": 32}

METHODS = pytest.mark.parametrize("method", ["pre-training", "lora", "full"])


def config_of(method, base, **options) -> TrainingConfig:
    """Return a tiny run of one of the three ways of training."""
    ways = {
        "pre-training": SIZE,
        "lora": {"base": base, "rank": 3, "dropout": 0.2, "targets": ("q", "up")},
        "full": {"base": base, "rank": "full"},
    }
    return TrainingConfig(**(SMALL | ways[method] | options))


def contents(out) -> dict[str, bytes]:
    """Return the bytes of every file of a run but its record, which holds times."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "run.json"
    }
