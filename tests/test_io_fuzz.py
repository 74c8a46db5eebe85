"""Sources damaged at random end in an error of five lines or in finite numbers; see fuzz.py."""

import math
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest
import torch
from fuzz_specimens import ADAPTERS, BASE, QUANTISED, TUNED, Q, lora, write, write_gguf, write_json
from safetensors.torch import save_file

import rankscope as rs
from rankscope.errors import AdapterError, SourceError, UpdateError
from rankscope.io.recipes import Formula, finite
from rankscope.io.tensors import StateDict

SCRIPT = Path(__file__).with_name("fuzz.py")


def test_damaged_sources():
    # In a process of its own, whose memory is bounded; a hang that no signal ends is cut here.
    command = [sys.executable, SCRIPT, "--cases", "600", "--minutes", "30"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2000)
    assert done.returncode == 0, done.stdout + done.stderr


def endless():
    while True:
        pass


def test_what_is_wrong_is_reported(tmp_path, monkeypatch):
    fuzz.write_all(tmp_path / "specimens")
    arguments = 0, 0, tmp_path / "specimens", tmp_path / "scratch"
    assert fuzz.case(*arguments) is None
    monkeypatch.setattr(fuzz, "judge", lambda source, base: {}["broken"])
    assert "KeyError: 'broken'" in fuzz.case(*arguments)
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    monkeypatch.setattr(fuzz, "judge", lambda source, base: endless())
    assert "more than 1 s" in fuzz.case(*arguments)


# What the hunt has found.


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64])
def test_numbers_that_are_not_computed_with(dtype):
    name = f"base_model.model.{Q}.lora_A.weight"
    tensors = lora()
    updates = rs.open_updates(tensors | {name: tensors[name].to(dtype)})
    with pytest.raises(UpdateError, match="a kind that is not computed with"):
        updates[Q]


def test_complex_scales_of_a_quantised_base(tmp_path):
    tensors, config = QUANTISED["gptq"]
    name = f"{Q}.scales"
    write(tmp_path / "base", tensors | {name: tensors[name].to(torch.complex64)})
    write_json(tmp_path / "base" / "config.json", {"quantization_config": config})
    updates = rs.open_updates(TUNED["gptq"], base=tmp_path / "base")
    with pytest.raises(SourceError, match="do not fit together"):
        updates[Q]


@pytest.mark.parametrize(("name", "last"), [("oft", "oft_R.weight"), ("peft loha", "hada_w1_a")])
def test_factors_with_a_dimension_too_many(tmp_path, name, last):
    tensors, config = ADAPTERS[name]
    key = f"base_model.model.{Q}.{last}"
    write(tmp_path / "x", tensors | {key: tensors[key][..., None].clone()})
    write_json(tmp_path / "x" / "adapter_config.json", config)
    with pytest.raises(AdapterError, match="shape that does not fit"):
        rs.open_updates(tmp_path / "x", base=BASE)


def test_updates_that_torch_cannot_compute():
    tensors = {"up": f"base_model.model.{Q}.lora_A.weight"}
    update = Formula(StateDict(lora(), "<x>"), lambda up: up @ up, tensors)
    with pytest.raises(UpdateError, match="cannot be computed"):
        update.build()


def test_configurations_that_command_a_terminal(tmp_path):
    write(tmp_path / "x", lora())
    path = tmp_path / "x" / "adapter_config.json"
    write_json(path, {"peft_type": "\x1b[2J"})
    with pytest.raises(AdapterError, match="something else") as caught:
        rs.open_updates(tmp_path / "x")
    assert "\\x1b[2J" in caught.value.got
    write_json(path, {"r": 2, "base_model_name_or_path": "\x1b[2J\n", "lora_alpha": 4})
    assert rs.info(tmp_path / "x").table.base_model.item() == "\\x1b[2J\\n"


PATTERNS = {
    "too large a count": "a{99999999999999999999}",
    "nested set": "[[a]",
    "slow": "(a|a)+b{",
}


@pytest.mark.parametrize("rule", PATTERNS.values(), ids=PATTERNS)
def test_patterns_that_python_stumbles_over(tmp_path, rule):
    save_file(lora(), tmp_path / "adapter_model.safetensors")
    write_json(tmp_path / "adapter_config.json", {"r": 2, "alpha_pattern": {rule: 4}})
    with pytest.raises(AdapterError, match="unusable alpha_pattern"):
        rs.open_updates(tmp_path)


def test_gguf_blocks_with_a_broken_scale(tmp_path):
    gguf = pytest.importorskip("gguf")
    write_gguf(tmp_path)
    path = tmp_path / "gguf" / "base" / "a.gguf"
    tensor = gguf.GGUFReader(path).tensors[0]
    content = bytearray(path.read_bytes())
    content[tensor.data_offset : tensor.data_offset + 2] = b"\xff\x7f"  # NaN in half precision
    path.write_bytes(content)
    updates = rs.open_updates({"blk.0.attn_q.weight": torch.ones(32, 32)}, base=path)
    with pytest.raises(UpdateError, match="not finite"):
        updates["blk.0.attn_q"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_one_number_that_is_not_finite(dtype, bad):
    tensors = {"a": torch.full((100, 50), torch.finfo(dtype).max, dtype=dtype)}
    finite(StateDict(tensors, "<x>"), "a")  # the sum overflows, the numbers are fine
    tensors = {"a": torch.ones(100, 50, dtype=dtype)}
    tensors["a"][77, 7] = bad
    with pytest.raises(UpdateError, match="not finite") as caught:
        finite(StateDict(tensors, "<x>"), "a")
    assert caught.value.got == "1 NaN or infinite of 5000"


def test_a_source_that_goes_before_it_is_hashed(tmp_path):
    write(tmp_path / "x", lora())
    updates, gone = rs.open_updates(tmp_path / "x"), rs.open_updates(tmp_path / "x")
    assert len(updates.inputs[0]["content_sha256"]) == 64
    (tmp_path / "x" / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="any more"):
        assert gone.inputs
