"""How much of the machine's matrix-product peak the trainer uses, and what adapters save.

Run with ``pytest tests/benchmarks/bench_training.py``; numbers stand in ``extra_info``. The
thread count is torch's own, which ``OMP_NUM_THREADS`` sets.
"""

import math
import statistics
import time

import pytest
import torch

from rankscope.training import TrainingConfig
from rankscope.training.config import native_bfloat16
from rankscope.training.loop import Trainer
from rankscope.training.methods import METHODS
from rankscope.training.model import CONTEXT, Architecture, new_model

DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}
# Square products, as a peak is usually measured, and the products of the model itself.
PRODUCTS = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 256, 1024), (4096, 1024, 256))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    out = tmp_path_factory.mktemp("base")
    METHODS["pre-training"].write(out, new_model(Architecture(), seed=0), TrainingConfig())
    return out


def seconds(work, repeats: int) -> float:
    """Return the least time that `work` took: other load only ever adds to it."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def peak(dtype: torch.dtype, work: float) -> float:
    """Return the largest rate, operations per second, of a matrix product in `dtype`.

    It is sustained for `work` operations, those of one step: a processor shared with others
    or limited in power is faster for a millisecond than for a tenth of a second.
    """
    rates = []
    for rows, inner, columns in PRODUCTS:
        a, b = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, columns, dtype=dtype)
        each = 2 * rows * inner * columns
        times = math.ceil(work / each)

        def products(a=a, b=b, times=times) -> None:
            for _ in range(times):
                torch.mm(a, b)

        rates.append(each * times / seconds(products, 4))
    return max(rates)


def operations(trainer: Trainer) -> float:
    """Return the operations of the products of one step, those of attention included.

    A full step takes three times its forward pass; adapters need no gradients of the frozen
    weights, and take twice.
    """
    size, tokens = trainer.model.architecture, trainer.config.batch * CONTEXT
    linear = 12 * size.layers * size.width**2
    attention = 2 * size.layers * CONTEXT * size.width
    passes = 2 if trainer.config.method == "LoRA" else 3
    return passes * 2 * (linear + attention) * tokens


@pytest.mark.parametrize("precision", ["bf16", "float32"])
@pytest.mark.parametrize("method", ["pre-training", "full", "lora-8", "lora-64"])
def test_tokens_per_second(benchmark, base, tmp_path, method, precision):
    if precision == "bf16" and not native_bfloat16():
        pytest.skip("this processor has no bfloat16 products")
    rank = {"pre-training": None, "full": "full", "lora-8": 8, "lora-64": 64}[method]
    config = TrainingConfig(
        base=None if rank is None else base, rank=rank, batch=32, precision=precision
    )
    trainer = Trainer(config, tmp_path)
    ceiling = peak(DTYPES[precision], operations(trainer))
    benchmark.pedantic(trainer.advance, rounds=8, warmup_rounds=2)

    best = benchmark.stats.stats.min
    benchmark.extra_info.update(
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        tokens_per_second=round(config.batch * CONTEXT / best),
        gigaflops=round(operations(trainer) / best / 1e9),
        peak_gigaflops=round(ceiling / 1e9),
        share_of_peak=round(operations(trainer) / best / ceiling, 3),
    )
    assert trainer.rows[-1]["loss"] < trainer.rows[0]["loss"] + 1  # it did train


@pytest.mark.parametrize("rank", [8, 64])
def test_an_adapters_step_against_a_full_step(benchmark, base, tmp_path, rank):
    full = Trainer(TrainingConfig(base=base, rank="full"), tmp_path)
    adapters = Trainer(TrainingConfig(base=base, rank=rank), tmp_path)
    whole = []
    # By turns, so that both meet the same load.
    benchmark.pedantic(
        adapters.advance,
        setup=lambda: whole.append(seconds(full.advance, 1)),
        rounds=15,
        warmup_rounds=2,
    )

    benchmark.extra_info.update(
        full_seconds=round(min(whole), 4),
        step_ratio=round(benchmark.stats.stats.min / min(whole), 3),
        median_ratio=round(benchmark.stats.stats.median / statistics.median(whole), 3),
    )
    assert len(adapters.rows) >= 15
