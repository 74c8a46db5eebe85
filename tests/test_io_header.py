"""The check of a safetensors header, against the library that checks whole files."""

import json
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from test_io_hostile import SAFETENSORS, entry

from rankscope.io.containers.header import parse_header


def packed(fields):
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text


def by_library(path, header, size):
    with path.open("wb") as file:
        file.write(header)
        file.truncate(size)
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {n: (s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}
    except SafetensorError:
        return None


def by_us(header, size):
    try:
        entries = parse_header(header, size).entries
    except (ValueError, RecursionError):
        return None
    return {name: (e.code, e.shape) for name, e in entries.items()}


counts = st.integers(0, 5)
codes = st.sampled_from(["F32", "F16", "BF16", "U8", "F4", "F6_E2M3", "F8_E8M0", "C64", "F31"])


@given(
    tensors=st.lists(st.tuples(codes, st.lists(counts, max_size=3)), max_size=4),
    shift=st.sampled_from([0, 0, 0, 1, -1]),
    trailing=st.sampled_from([0, 0, 0, 4]),
    at=counts,
)
def test_it_accepts_what_the_library_accepts(tmp_path_factory, tensors, shift, trailing, at):
    bits = {"F32": 32, "F16": 16, "BF16": 16, "F4": 4, "F6_E2M3": 6, "C64": 64}
    fields, end = {}, 0
    for n, (code, shape) in enumerate(tensors):
        size = torch.Size(shape).numel() * bits.get(code, 8) // 8
        start = end + (shift if n == at else 0)
        end = start + size
        fields[f"t{n}"] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    header = packed(fields)
    size = len(header) + max(end, 0) + trailing
    path = tmp_path_factory.mktemp("header") / "a.safetensors"
    assert by_us(header, size) == by_library(path, header, size)


@pytest.mark.parametrize("case", SAFETENSORS)
def test_it_refuses_what_the_library_refuses(tmp_path, case):
    header = packed(SAFETENSORS[case])
    size = len(header) + 8
    assert by_us(header, size) is None
    assert by_library(tmp_path / "a.safetensors", header, size) is None


@pytest.mark.parametrize(
    "fields",
    [
        b'{"a": {"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        b' "a": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        {"a": entry(0, 8) | {"shape": [2.0]}},
        {"a": entry(0, 8) | {"shape": [True, 2]}},
        {"a": entry(0, 8) | {"data_offsets": [0, 8, 8]}},
        {"a": entry(0, 8) | {"data_offsets": [0]}},
        {"a": entry(0, 8, shape=[2**63, 2**63, 0])},
        {"a": {"shape": [2], "data_offsets": [0, 8]}},
        {"a": [1]},
        {"a": entry(0, 8), "__metadata__": ["x"]},
        b'\xff{"a": 1}',
        b"[]",
        b"",
        b"{" + b"9" * 5000,
    ],
)
def test_what_else_is_refused(fields):
    header = packed(fields)
    assert by_us(header, len(header) + 8) is None


def test_types_and_bytes():
    whole = {"a": {"dtype": "F4", "shape": [2, 4], "data_offsets": [0, 4]},
             "b": {"dtype": "F8_E8M0", "shape": [3], "data_offsets": [4, 7]},
             "c": {"dtype": "F6_E3M2", "shape": [4], "data_offsets": [7, 10]},
             "d": {"dtype": "I32", "shape": [0, 3], "data_offsets": [10, 10]}}  # fmt: skip
    header = packed(whole)
    parsed = parse_header(header, len(header) + 10)
    a, b, c, d = (parsed.entries[name] for name in "abcd")
    assert a.info.shape == (2, 4)
    assert (a.tensor(bytearray(4)).shape, a.tensor(bytearray(4)).itemsize) == ((2, 2), 1)
    assert b.tensor(bytearray([127, 128, 126])).float().tolist() == [1.0, 2.0, 0.5]
    assert d.tensor(bytearray()).shape == (0, 3)
    with pytest.raises(ValueError, match="F6_E3M2"):
        c.tensor(bytearray(3))
