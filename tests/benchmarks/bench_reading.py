"""Time and memory of opening and walking an adapter, against reading and upcasting its bytes.

Run with ``pytest tests/benchmarks/bench_reading.py``; needs 640 MB of disk for the while.
Hashing the content for a result's provenance is measured apart.
"""

import ctypes
import json
import statistics
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import rankscope as rs

RANK = 64
# A 7B model: width, feed-forward width, layers.
WIDTH, INNER, LAYERS = 4096, 11008, 32
SHAPES = {f"self_attn.{x}_proj": (WIDTH, WIDTH) for x in "qkvo"} | {
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}
LARGEST = INNER * RANK * 8  # bytes of the largest factor in double precision


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    tensors = {}
    for layer in range(LAYERS):
        for name, (out, in_) in SHAPES.items():
            key = f"base_model.model.model.layers.{layer}.{name}"
            for letter, shape in {"A": (RANK, in_), "B": (out, RANK)}.items():
                tensors[f"{key}.lora_{letter}.weight"] = torch.randn(shape).to(torch.bfloat16)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    yield folder
    for file in folder.iterdir():
        file.unlink()


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def walk(folder):
    """Open an adapter and read every update, one after the other."""
    updates = rs.open_updates(folder)
    for update in updates:
        assert update.up.dtype == torch.bfloat16
    return updates


def walk_and_upcast(folder):
    """As measures do: every update in double precision, and nothing kept."""
    for update in rs.open_updates(folder):
        update.up.double(), update.down.double()


def walk_and_hash(folder):
    assert "content_sha256" in walk(folder).inputs[0]


def upcast(folder):
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - no dict
            file.get_tensor(name).float()


def upcast_in_place(folder):
    buffer = torch.empty(INNER * RANK)
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - no dict
            tensor = file.get_tensor(name)
            buffer[: tensor.numel()].copy_(tensor.flatten())


def seconds(work, *arguments):
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


@pytest.mark.parametrize("work", [walk, walk_and_upcast, walk_and_hash])
@pytest.mark.parametrize("baseline", [upcast, upcast_in_place])
def test_walking_against_upcasting(benchmark, adapter, work, baseline, capsys):
    plain = []
    # By turns, so that both meet the same load and the same cache.
    benchmark.pedantic(
        work,
        setup=lambda: plain.append(seconds(baseline, adapter)) or ((adapter,), {}),
        rounds=8,
        warmup_rounds=1,
    )
    times = benchmark.stats.stats.sorted_data
    ratios = sorted(a / b for a, b in zip(benchmark.stats.stats.data, plain[1:], strict=True))
    found = {
        "seconds": round(min(times), 3),
        "baseline_seconds": round(min(plain), 3),
        "ratio_of_minima": round(min(times) / min(plain), 2),
        "median_ratio": round(statistics.median(ratios), 2),
        "spread": [round(ratios[1], 2), round(ratios[-2], 2)],
    }
    benchmark.extra_info.update(baseline=baseline.__name__, **found)
    with capsys.disabled():
        print(f"\n{benchmark.name} {found}")


def anonymous():
    """Return the bytes of this process that are no mapped file."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def test_peak_memory(adapter, capsys):
    walk_and_upcast(adapter)  # what is imported and allocated once
    ctypes.CDLL(None).malloc_trim(0)  # what was freed counts again
    done, peak, before = threading.Event(), [0], anonymous()

    def watch():
        while not done.wait(0.001):
            peak.append(anonymous() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    walk_and_upcast(adapter)
    done.set()
    thread.join()
    with capsys.disabled():
        print(f"\npeak: {max(peak) / 1e6:.0f} MB, {max(peak) / LARGEST:.1f} times the largest")
    assert max(peak) < 4 * LARGEST
