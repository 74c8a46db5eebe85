"""Quantised bases against the libraries that write them, or formulas written out here."""

import json
import pickle

import numpy as np
import pytest
import torch
from oracles import gaussian, peft_tensors, write_peft
from safetensors.torch import save_file

import rankscope as rs
from rankscope.errors import SourceError
from rankscope.io.quantized import Dequantised
from rankscope.io.sources import open_source

MODULE = "model.layers.0.self_attn.q_proj"
WEIGHT = f"{MODULE}.weight"
# float32 arithmetic in another order.
CLOSE = {"rtol": 1e-6, "atol": 1e-7}


def written(folder, tensors, config=None):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    return folder


def read(folder, tensors, config=None, name=WEIGHT):
    return open_source(written(folder, tensors, config)).store.read(name)


def packed(values, bits):
    """Integers packed along the last dimension, one by one."""
    rows = values.reshape(-1, values.shape[-1]).tolist()
    per = 32 // bits
    words = [
        [
            sum(v << (bits * j) for j, v in enumerate(row[start : start + per]))
            for start in range(0, len(row), per)
        ]
        for row in rows
    ]
    signed = np.array(words, dtype=np.uint32).astype(np.int32)
    return torch.from_numpy(signed).reshape(*values.shape[:-1], -1)


def integers(*shape, bits, rng):
    return torch.randint(0, 2**bits, shape, generator=rng)


def weights(rng, out=16, in_=32):
    return gaussian(out, in_, rng=rng).float()


def flat_oracle(bnb, codes, state):
    """The library's numbers; its CPU kernel mistakes rows that are no whole number of blocks."""
    shape, state.shape = state.shape, torch.Size([state.shape.numel()])
    expected = bnb.dequantize_4bit(codes, state).reshape(shape)
    state.shape = shape
    return expected


def nf4(rng, *, kind="nf4", double=False, out=16, in_=32):
    bnb = pytest.importorskip("bitsandbytes.functional")
    codes, state = bnb.quantize_4bit(
        weights(rng, out, in_), blocksize=64, compress_statistics=double, quant_type=kind
    )
    parts = {f"{WEIGHT}.{k}": v for k, v in state.as_dict(packed=True).items()}
    return {WEIGHT: codes, **parts}, None, flat_oracle(bnb, codes, state)


def int8(rng):
    bnb = pytest.importorskip("bitsandbytes.functional")
    codes, scales, _ = bnb.int8_vectorwise_quant(weights(rng).half())
    tensors = {WEIGHT: codes, f"{MODULE}.SCB": scales}
    tensors[f"{MODULE}.weight_format"] = torch.tensor(0, dtype=torch.uint8)
    return tensors, {"quant_method": "bitsandbytes"}, bnb.int8_vectorwise_dequant(codes, scales)


def gptq(rng, *, bits=4, first=True, ordered=False, out=16, in_=32, size=8):
    q, z = (integers(n, out, bits=bits, rng=rng) for n in (in_, in_ // size))
    s = gaussian(in_ // size, out, rng=rng).half()
    g = torch.arange(in_) // size
    if ordered:
        g = g[torch.randperm(in_, generator=rng)]
    expected = torch.tensor(
        [
            [(q[i, o] - z[g[i], o]).item() * s[g[i], o].item() for i in range(in_)]
            for o in range(out)
        ]
    )
    tensors = {
        f"{MODULE}.qweight": packed(q.T, bits).T,
        f"{MODULE}.qzeros": packed((z - 1) % 2**bits if first else z, bits),
        f"{MODULE}.scales": s,
    }
    if ordered:
        tensors[f"{MODULE}.g_idx"] = g.int()
    config = {"quant_method": "gptq", "bits": bits, "group_size": size, "desc_act": ordered}
    return tensors, config | {"checkpoint_format": "gptq" if first else "gptq_v2"}, expected


def awq(rng, out=16, in_=32, size=8):
    q, z = (integers(n, out, bits=4, rng=rng) for n in (in_, in_ // size))
    s = gaussian(in_ // size, out, rng=rng).half()
    # AutoAWQ's packing: nibble j of a word holds the output order[j].
    order = [8 * (j // 8) + [0, 2, 4, 6, 1, 3, 5, 7][j % 8] for j in range(out)]
    tensors = {
        f"{MODULE}.qweight": packed(q[:, order], 4),
        f"{MODULE}.qzeros": packed(z[:, order], 4),
        f"{MODULE}.scales": s,
    }
    expected = (q - z.repeat_interleave(size, 0)) * s.float().repeat_interleave(size, 0)
    return (
        tensors,
        {"quant_method": "awq", "bits": 4, "group_size": size, "version": "gemm"},
        expected.T,
    )


def fp8(rng, *, out=16, in_=32, block=(8, 16), scale_dtype=torch.float32):
    w = weights(rng, out, in_).to(torch.float8_e4m3fn)
    shape = -(-out // block[0]), -(-in_ // block[1])
    scale = torch.exp2(integers(*shape, bits=3, rng=rng).float() - 4)
    expected = w.float() * torch.kron(scale, torch.ones(block))[:out, :in_]
    tensors = {WEIGHT: w, f"{MODULE}.weight_scale_inv": scale.to(scale_dtype)}
    return tensors, {"quant_method": "fp8", "weight_block_size": list(block)}, expected


def compressed(rng, *, bits=4, symmetric=True, group=8, out=16, in_=32):
    ct = pytest.importorskip("compressed_tensors.compressors")
    schemes = pytest.importorskip("compressed_tensors.quantization")
    strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    args = schemes.QuantizationArgs(num_bits=bits, symmetric=symmetric, **strategy)
    scheme = schemes.QuantizationScheme(targets=["Linear"], weights=args)
    groups = in_ // group if group else 1
    state = {"weight": weights(rng, out, in_)}
    state["weight_scale"] = gaussian(out, groups, rng=rng).float().abs() / 4 + 0.1
    zeros = integers(out, groups, bits=bits, rng=rng) - 2 ** (bits - 1)
    state["weight_zero_point"] = (zeros * (not symmetric)).to(torch.int8)
    state = ct.PackedQuantizationCompressor.compress(state, scheme)
    expected = ct.PackedQuantizationCompressor.decompress(state, scheme)["weight"]
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    config["config_groups"] = {"group_0": {"weights": {"num_bits": bits, "symmetric": symmetric}}}
    return {f"{MODULE}.{k}": v for k, v in state.items()}, config, expected


FORMATS = {
    "nf4": nf4,
    "nf4 double": lambda rng: nf4(rng, double=True),
    "nf4 ragged": lambda rng: nf4(rng, double=True, out=12, in_=70),
    "nf4 many blocks": lambda rng: nf4(rng, double=True, out=96, in_=200),
    "fp4": lambda rng: nf4(rng, kind="fp4"),
    "fp4 double": lambda rng: nf4(rng, kind="fp4", double=True),
    "int8": int8,
    "gptq": gptq,
    "gptq ordered": lambda rng: gptq(rng, ordered=True),
    "gptq 8 bits": lambda rng: gptq(rng, bits=8),
    "gptq 2 bits": lambda rng: gptq(rng, bits=2),
    "gptq v2": lambda rng: gptq(rng, first=False),
    "gptq v2 ordered": lambda rng: gptq(rng, first=False, ordered=True, bits=8),
    "awq": awq,
    "fp8": fp8,
    "fp8 ragged": lambda rng: fp8(rng, out=200, in_=300, block=(128, 128)),
    "compressed": compressed,
    "compressed 8 bits": lambda rng: compressed(rng, bits=8),
    "compressed zeros": lambda rng: compressed(rng, symmetric=False),
    "compressed rows": lambda rng: compressed(rng, group=0, in_=30),
    "compressed ragged zeros": lambda rng: compressed(
        rng, symmetric=False, out=12, group=15, in_=30
    ),
}  # fmt: skip


@pytest.fixture(params=FORMATS)
def case(request, rng):
    return FORMATS[request.param](rng)


def test_weights_are_those_of_the_library(tmp_path, case):
    tensors, config, expected = case
    store = open_source(written(tmp_path, tensors, config)).store
    assert list(store.tensors) == [WEIGHT]
    assert store.tensors[WEIGHT].shape == expected.shape
    assert store.tensors[WEIGHT].dtype == "float32"
    torch.testing.assert_close(store.read(WEIGHT), expected.float(), **CLOSE)


def test_relative_norms_are_those_of_the_plain_base(tmp_path, case, rng):
    tensors, config, expected = case
    out, in_ = expected.shape
    write_peft(tmp_path / "adapter", peft_tensors([MODULE], 4, rng, out=out, in_=in_))
    norms = [
        rs.rank(rs.open_updates(tmp_path / "adapter", base=base)).table.relative_norm
        for base in (written(tmp_path / "base", tensors, config), {WEIGHT: expected.float()})
    ]
    assert norms[0].notna().all()
    np.testing.assert_allclose(*norms, rtol=1e-6)


def test_every_part_is_needed(tmp_path, case):
    tensors, config, _ = case
    # Without these nothing is quantised, or they may be absent, or have a test of their own.
    kept = (".qweight", "_packed", ".SCB", "_inv", "_format")
    needed = [n for n in tensors if not n.endswith(kept) and ".quant_state" not in n]
    if f"{MODULE}.weight_scale_inv" in tensors:
        pytest.skip("8-bit numbers without a scale are refused when they are read")
    for number, name in enumerate(needed):
        rest = {n: t for n, t in tensors.items() if n != name}
        refused(tmp_path / str(number), rest, config, "do not fit together")


def refused(folder, tensors, config, *texts):
    with pytest.raises(SourceError) as caught:
        open_source(written(folder, tensors, config))
    assert len(str(caught.value).splitlines()) == 5
    for text in texts:
        assert text in str(caught.value)


def test_other_tensors_stay_and_the_view_pickles(tmp_path, rng):
    tensors, config, expected = gptq(rng)
    tensors["model.norm.weight"] = torch.arange(4.0)
    store = pickle.loads(pickle.dumps(open_source(written(tmp_path, tensors, config)).store))
    assert set(store.tensors) == {WEIGHT, "model.norm.weight"}
    assert torch.equal(store.read("model.norm.weight"), torch.arange(4.0))
    torch.testing.assert_close(store.read(WEIGHT), expected, **CLOSE)


def test_the_configuration_that_decides_is_recorded(tmp_path, rng):
    tensors, config, _ = gptq(rng)
    write_peft(tmp_path / "adapter", peft_tensors([MODULE], 4, rng, out=16, in_=32))
    updates = rs.open_updates(tmp_path / "adapter", base=written(tmp_path / "b", tensors, config))
    assert str(tmp_path / "b" / "config.json") in [file["path"] for file in updates.inputs]


def test_plain_checkpoints_are_left_alone(tmp_path, rng):
    tensors = {WEIGHT: weights(rng), "attn.W_q": weights(rng), "vq.codebooks": weights(rng)}
    store = open_source(written(tmp_path, tensors, None)).store
    assert not isinstance(store, Dequantised)
    assert set(store.tensors) == set(tensors)


def test_shards_of_one_base(tmp_path, rng):
    tensors, config, expected = fp8(rng)
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for (name, tensor), file in zip(tensors.items(), names, strict=True):
        save_file({name: tensor}, tmp_path / file)
    index = {"weight_map": dict(zip(tensors, names, strict=True))}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    torch.testing.assert_close(open_source(tmp_path).store.read(WEIGHT), expected, **CLOSE)


def test_differences_of_a_quantised_base(tmp_path, rng):
    tensors, config, expected = gptq(rng)
    delta = weights(rng)
    base = written(tmp_path, tensors, config)
    (update,) = rs.open_updates({WEIGHT: expected.float() + delta}, base)
    torch.testing.assert_close(update.dense().float(), delta, rtol=1e-4, atol=1e-4)


def test_dora_needs_the_numbers_of_its_base(tmp_path, rng):
    tensors, config, expected = gptq(rng)
    adapter = peft_tensors([MODULE], 4, rng, out=16, in_=32)
    adapter[f"base_model.model.{MODULE}.lora_magnitude_vector"] = torch.rand(16) + 1
    write_peft(tmp_path / "a", adapter, use_dora=True)
    base = written(tmp_path / "b", tensors, config)
    one, other = (
        rs.open_updates(tmp_path / "a", base=b)[MODULE].dense()
        for b in (base, {WEIGHT: expected.float()})
    )
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_four_bits_stored_as_another_dtype(tmp_path, rng):
    tensors, _, expected = nf4(rng)
    tensors[WEIGHT] = tensors[WEIGHT].flatten().view(torch.bfloat16)[:, None]
    torch.testing.assert_close(read(tmp_path, tensors), expected, **CLOSE)


def test_live_model_with_a_quantised_base(rng):
    nn = pytest.importorskip("bitsandbytes.nn")
    peft = pytest.importorskip("peft")
    linear = nn.Linear4bit(32, 16, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    linear.weight = nn.Params4bit(weights(rng), requires_grad=False, quant_type="nf4")
    model = torch.nn.Sequential(linear.to("cpu"))
    live = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["0"]))
    layer = live.base_model.model[0]
    if not hasattr(layer.weight, "quant_state") or layer.weight.dtype != torch.uint8:
        pytest.skip("this bitsandbytes does not quantise on the CPU")
    bnb = pytest.importorskip("bitsandbytes.functional")
    expected = flat_oracle(bnb, layer.weight.data, layer.weight.quant_state)
    updates = rs.open_updates(live)
    torch.testing.assert_close(updates.weight("0"), expected.float(), **CLOSE)
    assert len(updates.inputs) == 1


def test_eight_bits_without_scales_are_refused_when_read(tmp_path, rng):
    write_peft(tmp_path / "a", peft_tensors([MODULE], 4, rng, out=16, in_=32))
    base = {WEIGHT: weights(rng).to(torch.float8_e4m3fn)}
    with pytest.raises(SourceError, match="quantised"):
        rs.open_updates(tmp_path / "a", base).weight(MODULE)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (16,), (16, 1)])
@pytest.mark.parametrize("suffix", [".weight_scale", ".scale_weight", ".weight_scale_inv"])
def test_fp8_of_tensors_and_rows(tmp_path, rng, shape, suffix):
    w = weights(rng).to(torch.float8_e4m3fn)
    scale = torch.rand(shape, generator=rng)
    expected = w.float() * (scale.reshape(16, 1) if scale.numel() > 1 else scale.reshape(()))
    found = read(tmp_path, {WEIGHT: w, MODULE + suffix: scale})
    torch.testing.assert_close(found, expected, **CLOSE)


def test_fp8_with_scales_that_are_powers_of_two(tmp_path, rng):
    tensors, config, expected = fp8(rng, scale_dtype=torch.float8_e8m0fnu)
    torch.testing.assert_close(read(tmp_path, tensors, config), expected, **CLOSE)


def test_mxfp4_is_that_of_transformers(tmp_path, rng):
    convert = pytest.importorskip("transformers.integrations.mxfp4").convert_moe_packed_tensors
    blocks = torch.randint(0, 256, (3, 8, 2, 16), generator=rng, dtype=torch.uint8)
    scales = torch.randint(110, 140, (3, 8, 2), generator=rng, dtype=torch.uint8)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    tensors = {f"{name}_blocks": blocks, f"{name}_scales": scales}
    found = read(tmp_path, tensors, {"quant_method": "mxfp4"}, name)
    assert found.shape == (3, 64, 8)
    expected = convert(blocks.clone(), scales.clone(), dtype=torch.float32)
    assert torch.equal(found, expected)
    del tensors[f"{name}_scales"]
    refused(tmp_path / "b", tensors, None, "do not fit together")


def test_compressed_groups_in_the_order_of_activations(tmp_path, rng):
    tensors, config, _ = compressed(rng)
    g = (torch.arange(32) // 8)[torch.randperm(32, generator=rng)]
    shifts = 4 * torch.arange(8)
    q = ((tensors[f"{WEIGHT}_packed"][..., None].long() >> shifts) & 15).flatten(1) - 8
    expected = q * tensors[f"{WEIGHT}_scale"][:, g]
    tensors[f"{WEIGHT}_g_idx"] = g.int()
    torch.testing.assert_close(read(tmp_path, tensors, config), expected, **CLOSE)
    plain = read(tmp_path, compressed(rng)[0] | {f"{WEIGHT}_g_idx": g.int() * 0 - 1}, config)
    assert plain.shape == (16, 32)


@pytest.mark.parametrize("scheme", [gptq, awq])
def test_what_only_the_configuration_tells(tmp_path, rng, scheme):
    tensors, config, _ = scheme(rng)
    refused(tmp_path / "a", tensors, None, "nothing says how", "config.json")
    refused(tmp_path / "b", tensors, config | {"bits": 3}, "bits 3")
    refused(tmp_path / "c", tensors, config | {"bits": None}, "bits None")
    refused(tmp_path / "d", tensors, config | {"group_size": 16}, "2 groups of 16")
    key = "version" if scheme is awq else "checkpoint_format"
    for layout in ("gemv", "marlin"):
        refused(tmp_path / layout, tensors, config | {key: layout}, f"got: {layout}")


def test_fp8_blocks_are_not_guessed(tmp_path, rng):
    tensors, config, _ = fp8(rng)
    refused(tmp_path / "a", tensors, None, "how large the blocks are", "weight_block_size")
    for said in ([0, 8], [8], "8", [8.0, 16], [True, 16]):
        refused(tmp_path / "b", tensors, config | {"weight_block_size": said}, "how large")
    refused(tmp_path / "c", tensors, config | {"weight_block_size": [8, 8]}, "(2, 4)")


@pytest.mark.parametrize("method", ["hqq", "aqlm", "quanto", "torchao", "exl3", "auto-round"])
def test_other_libraries_are_refused_by_name(tmp_path, rng, method):
    refused(tmp_path, {WEIGHT: weights(rng)}, {"quant_method": method}, method, "dequantize()")


@pytest.mark.parametrize(
    ("suffixes", "kind"),
    [
        ((".W_q", ".zero"), "HQQ"),
        ((".codebooks", ".codes"), "AQLM"),
        ((".trellis", ".suh"), "EXL3"),
        ((".weight._data", ".weight._scale"), "quanto"),
        ((".weight_scale_2", ".weight_scale"), "NVFP4"),
        ((".weight_global_scale", ".weight_scale"), "NVFP4"),
    ],
)
def test_other_tensors_are_refused_by_name(tmp_path, rng, suffixes, kind):
    refused(tmp_path, {MODULE + s: weights(rng) for s in suffixes}, None, kind)


@pytest.mark.parametrize("layout", ["nvfp4-pack-quantized", "marlin-24", "int-quantized"])
def test_other_layouts_of_compressed_tensors_are_refused(tmp_path, rng, layout):
    config = {"quant_method": "compressed-tensors", "format": layout}
    refused(tmp_path, {WEIGHT: weights(rng)}, config, layout)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [16, 33]},
        {"shape": [2**60, 2**60]},
        {"shape": [-16, -32]},
        {"shape": "many"},
        {"blocksize": 0},
        {"blocksize": 2**39},
        {"blocksize": True},
        {"nested_offset": float("nan")},
        {"nested_offset": "0"},
        {"nested_blocksize": -1},
    ],
)
def test_hostile_states(tmp_path, rng, change):
    tensors, _, _ = nf4(rng, double=True)
    state = f"{WEIGHT}.quant_state.bitsandbytes__nf4"
    content = json.loads(bytes(tensors[state].tolist())) | change
    tensors[state] = torch.tensor(list(json.dumps(content).encode()), dtype=torch.uint8)
    refused(tmp_path, tensors, None, "do not fit together")


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b"[" * 9000, b"{}" + b" " * 20_000])
def test_states_that_are_no_state(tmp_path, rng, content):
    tensors, _, _ = nf4(rng)
    state = f"{WEIGHT}.quant_state.bitsandbytes__nf4"
    tensors[state] = torch.tensor(list(content), dtype=torch.uint8)
    refused(tmp_path, tensors, None, "do not fit together")


def test_four_bits_without_their_state(tmp_path, rng):
    tensors, _, _ = nf4(rng)
    del tensors[f"{WEIGHT}.quant_state.bitsandbytes__nf4"]
    refused(tmp_path, tensors, None, "quant_state")


@pytest.mark.parametrize("value", [-1, 4, 2**31 - 1])
@pytest.mark.parametrize("scheme", [gptq, compressed])
def test_groups_out_of_range(tmp_path, rng, scheme, value):
    tensors, config, _ = scheme(rng)
    name = f"{MODULE}.g_idx" if scheme is gptq else f"{WEIGHT}_g_idx"
    tensors[name] = torch.arange(32, dtype=torch.int32) // 8
    tensors[name][5] = value
    store = open_source(written(tmp_path, tensors, config)).store
    with pytest.raises(SourceError, match="do not fit together"):
        store.read(WEIGHT)


def test_an_order_that_is_promised(tmp_path, rng):
    tensors, config, _ = compressed(rng)
    config["config_groups"]["group_0"]["weights"]["actorder"] = "group"
    refused(tmp_path, tensors, config, "weight_g_idx")


@pytest.mark.parametrize("groups", [3, [], {"a": 3}, {"a": {"weights": 3}}, {"a": {}}])
def test_groups_that_say_nothing(tmp_path, rng, groups):
    tensors, config, expected = compressed(rng)
    found = read(tmp_path, tensors, config | {"config_groups": groups})
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("size", [(0, 32), (16, 2**40), (-16, -32), (16, 4), (17, 32)])
def test_compressed_sizes_that_lie(tmp_path, rng, size):
    tensors, config, _ = compressed(rng)
    tensors[f"{WEIGHT}_shape"] = torch.tensor(size)
    refused(tmp_path, tensors, config, "do not fit together")


def test_eight_bits_in_the_order_of_one_gpu(tmp_path, rng):
    tensors, config, _ = int8(rng)
    tensors[f"{MODULE}.weight_format"] = torch.tensor(2, dtype=torch.uint8)
    store = open_source(written(tmp_path, tensors, config)).store
    with pytest.raises(SourceError, match="do not fit together"):
        store.read(WEIGHT)


@pytest.mark.parametrize("text", ["{", "\xff", "[" * 100_000])
def test_configurations_that_are_none(tmp_path, rng, text):
    folder = written(tmp_path, {WEIGHT: weights(rng)})
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(SourceError, match=r"config\.json cannot be used"):
        open_source(folder)


@pytest.mark.parametrize("content", [[], 3, {"quantization_config": 3}, {}])
def test_configurations_that_say_nothing(tmp_path, rng, content):
    folder = written(tmp_path, {WEIGHT: weights(rng)})
    (folder / "config.json").write_text(json.dumps(content))
    assert not isinstance(open_source(folder).store, Dequantised)
