"""GGUF: base checkpoints and adapters, against gguf-py and the formula of llama.cpp."""

import importlib
import pickle
import resource
import struct

import numpy as np
import pytest
import torch

import rankscope as rs
from rankscope.errors import AdapterError, SourceError
from rankscope.io.sources import open_source, open_weights

gguf = pytest.importorskip("gguf")
NAME = "blk.0.attn_q"


def write(path, tensors, *, adapter=True, **fields):
    """Write arrays as they are, or ``(array, type)`` quantised."""
    writer = gguf.GGUFWriter(path, "llama")
    if adapter:
        writer.add_type("adapter")
        writer.add_string("adapter.type", fields.pop("kind", "lora"))
    if "alpha" in fields:
        writer.add_float32("adapter.lora.alpha", fields.pop("alpha"))
    for name, number in fields.items():
        writer.add_uint16(name.replace("_", "."), number)
    for name, content in tensors.items():
        array, type_ = content if isinstance(content, tuple) else (content, None)
        if type_ is not None:
            array = gguf.quants.quantize(array, type_)
        writer.add_tensor(name, array, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def factors(name=NAME, out=12, in_=8, rank=4):
    return {f"{name}.weight.lora_a": normal(rank, in_), f"{name}.weight.lora_b": normal(out, rank)}


def product(tensors, scale, name=NAME):
    a, b = (tensors[f"{name}.weight.lora_{part}"].astype(np.float64) for part in "ab")
    return torch.from_numpy(scale * b @ a)


@pytest.mark.parametrize(("alpha", "scale"), [(16, 4.0), (0, 1.0), (None, 1.0), (-2, -0.5)])
def test_scale_is_that_of_llama_cpp(tmp_path, alpha, scale):
    tensors = factors()
    said = {} if alpha is None else {"alpha": alpha}
    updates = rs.open_updates(write(tmp_path / "a.gguf", tensors, **said))
    assert (updates.format, updates.names) == ("gguf", [NAME])
    site = updates.site(NAME)
    assert (site.shape, site.rank, site.scale, site.layer) == ((12, 8), 4, scale, 0)
    torch.testing.assert_close(updates[NAME].dense(), product(tensors, scale))
    assert any("rslora" in note for note in updates.notes)


def test_alpha_of_the_user_wins(tmp_path):
    path = write(tmp_path / "a.gguf", factors(), alpha=16)
    assert rs.open_updates(path, alpha=8).site(NAME).scale == 2.0


def test_quantised_and_half_factors(tmp_path):
    name = f"{NAME}.weight.lora_"
    q8, f16 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F16
    a, b = normal(4, 64), normal(12, 4)
    tensors = {f"{name}a": (a, q8), f"{name}b": (b, f16)}
    update = rs.open_updates(write(tmp_path / "a.gguf", tensors, alpha=4))[NAME]
    back = gguf.quants.dequantize(gguf.quants.quantize(a, q8), q8).astype(np.float64)
    expected = torch.from_numpy(b.astype(np.float16).astype(np.float64) @ back)
    torch.testing.assert_close(update.dense(), expected)


def test_token_embedding_is_transposed(tmp_path):
    a, b = normal(20, 4), normal(8, 4)
    name = "token_embd.weight.lora_"
    updates = rs.open_updates(write(tmp_path / "a.gguf", {f"{name}a": a, f"{name}b": b}, alpha=8))
    expected = 2 * torch.from_numpy(a.astype(np.float64) @ b.T.astype(np.float64))
    assert updates.site("token_embd").rank == 4
    torch.testing.assert_close(updates["token_embd"].dense(), expected)


def test_experts_are_one_site_each(tmp_path):
    name = "blk.1.ffn_up_exps"
    tensors = {f"{name}.weight.lora_a": normal(3, 2, 8), f"{name}.weight.lora_b": normal(3, 6, 2)}
    base = write(tmp_path / "b.gguf", {f"{name}.weight": normal(3, 6, 8, seed=1)}, adapter=False)
    updates = rs.open_updates(write(tmp_path / "a.gguf", tensors, alpha=2), base)
    assert updates.names == [f"{name}[{e}]" for e in range(3)]
    torch.testing.assert_close(updates[f"{name}[2]"].dense(), product(tensors, 1.0, name)[2])
    assert torch.equal(updates.weight(f"{name}[2]"), torch.from_numpy(normal(3, 6, 8, seed=1)[2]))


def test_norms_are_left_unread(tmp_path):
    tensors = factors() | {"blk.0.attn_norm.weight": normal(8)}
    updates = rs.open_updates(write(tmp_path / "a.gguf", tensors, alpha=1))
    assert updates.unread == ("blk.0.attn_norm.weight",)


@pytest.mark.parametrize(
    "change",
    [
        {"a": None},
        {"b": None},
        {"a": normal(3, 8)},
        {"a": normal(2, 4, 8)},
        {"a": normal(8)},
        {"a": normal(2, 4, 8), "b": normal(3, 12, 4)},
        {"a": normal(2, 4, 8), "b": normal(2, 12, 5)},
    ],
)
def test_factors_that_do_not_chain(tmp_path, change):
    tensors = factors()
    for part, array in change.items():
        tensors[f"{NAME}.weight.lora_{part}"] = array
    tensors = {name: array for name, array in tensors.items() if array is not None}
    with pytest.raises(AdapterError):
        rs.open_updates(write(tmp_path / "a.gguf", tensors, alpha=1))


def test_embedding_whose_ranks_disagree(tmp_path):
    name = "token_embd.weight.lora_"
    path = write(tmp_path / "a.gguf", {f"{name}a": normal(9, 4), f"{name}b": normal(8, 3)})
    with pytest.raises(AdapterError, match="do not fit together"):
        rs.open_updates(path)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_alphas_that_are_no_number(tmp_path, alpha):
    with pytest.raises(AdapterError, match="unusable alpha"):
        rs.open_updates(write(tmp_path / "a.gguf", factors(), alpha=alpha))


def test_other_adapters_are_refused(tmp_path):
    with pytest.raises(AdapterError, match="kind of GGUF adapter"):
        rs.open_updates(write(tmp_path / "a.gguf", factors(), kind="control"))


def random_blocks(kind, rows=2, width=512):
    """Random bytes of a type, with finite half-precision scales."""
    size, bytes_ = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 50, (rows, width // size * bytes_), np.uint8)
    return raw


@pytest.mark.parametrize(
    "kind", ["Q4_K", "Q5_K", "Q6_K", "Q3_K", "Q2_K", "Q4_0", "Q8_0", "IQ4_XS"]
)
def test_quantised_bases(tmp_path, kind):
    type_ = gguf.GGMLQuantizationType[kind]
    raw = random_blocks(type_)
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "llama")
    writer.add_tensor(f"{NAME}.weight", raw, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    store = open_source(tmp_path / "b.gguf").store
    expected = torch.from_numpy(gguf.quants.dequantize(raw, type_))
    assert store.tensors[f"{NAME}.weight"].shape == (2, 512)
    assert torch.isfinite(expected).all()
    assert torch.equal(store.read(f"{NAME}.weight"), expected)
    tensors = factors(out=2, in_=512, rank=1)
    adapter = write(tmp_path / "a.gguf", tensors, alpha=1)
    norms = [
        rs.rank(rs.open_updates(adapter, base)).table.relative_norm
        for base in (tmp_path / "b.gguf", {f"{NAME}.weight": expected})
    ]
    assert norms[0].notna().all()
    assert norms[0].equals(norms[1])


@pytest.mark.parametrize(
    ("kind", "dtype"), [("F32", "float32"), ("F16", "float16"), ("BF16", "bfloat16")]
)
def test_plain_bases(tmp_path, kind, dtype):
    array = normal(6, 32)
    path = write(
        tmp_path / "b.gguf", {"x.weight": (array, gguf.GGMLQuantizationType[kind])}, adapter=False
    )
    store = pickle.loads(pickle.dumps(open_source(path).store))
    found = store.read("x.weight")
    assert (store.tensors["x.weight"].dtype, found.dtype) == (dtype, getattr(torch, dtype))
    assert torch.equal(found, torch.from_numpy(array).to(found.dtype))
    assert store.provenance["bytes"] == path.stat().st_size
    assert store.metadata["general.architecture"] == "llama"


def test_tuned_checkpoints_against_their_base(tmp_path):
    paths = [
        write(tmp_path / f"{seed}.gguf", {"x.weight": normal(6, 8, seed=seed)}, adapter=False)
        for seed in range(2)
    ]
    (update,) = rs.open_updates(paths[1], paths[0])
    expected = normal(6, 8, seed=1).astype(np.float64) - normal(6, 8, seed=0)
    torch.testing.assert_close(update.dense(), torch.from_numpy(expected))


def test_stacks_are_not_compared_as_one_matrix(tmp_path):
    tensors = {"blk.0.ffn_up_exps.weight": normal(3, 4, 8), "x.weight": normal(2, 2)}
    path = write(tmp_path / "b.gguf", tensors, adapter=False)
    with pytest.raises(SourceError, match="stacked experts"):
        rs.open_updates(path, path)
    with pytest.raises(SourceError, match="stacked experts"):
        open_weights(path)


TENSORS = {f"blk.{n}.attn_q.weight": normal(8, 8, seed=n) for n in range(5)}


def split(folder, tensors=TENSORS, *, stem="m", small_first=False):
    """Write a model in parts of two tensors each, as gguf-py splits it."""
    folder.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(
        folder / f"{stem}.gguf", "llama", split_max_tensors=2, small_first_shard=small_first
    )
    writer.add_token_list(["a", "b", "ccc"])
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob(f"{stem}-*.gguf"))


@pytest.mark.parametrize("small_first", [False, True])
def test_parts_are_one_model(tmp_path, small_first):
    parts = split(tmp_path, small_first=small_first)
    assert len(parts) == 3 + small_first
    for part in parts:
        store = pickle.loads(pickle.dumps(open_source(part).store))
        assert list(store.tensors) == list(TENSORS)
        for name, array in TENSORS.items():
            assert torch.equal(store.read(name), torch.from_numpy(array))
        assert store.metadata["general.architecture"] == "llama"
        assert [record["path"] for record in store.files] == [str(path) for path in parts]
    tuned = {name: array + 1 for name, array in TENSORS.items()}
    (first, *_) = split(tmp_path / "tuned", tuned)
    updates = rs.open_updates(first, parts[-1])
    assert [update.norm() for update in updates] == pytest.approx([8.0] * 5, rel=1e-6)


def test_parts_that_are_not_whole(tmp_path):
    parts = split(tmp_path)
    parts[1].rename(tmp_path / "x.gguf")
    refused(parts[0], "m-00002-of-00003.gguf beside it", "no such file")
    refused(tmp_path / "x.gguf", "3 parts named NAME-00001-of-00003.gguf")
    # Two parts swapped, and one of another model.
    parts[2].rename(parts[1])
    (tmp_path / "x.gguf").rename(parts[2])
    refused(parts[0], "part 2 of 3", "says: part 3 of 3")
    other = split(tmp_path / "other", {f"y{n}.weight": normal(2, 2) for n in range(6)})
    parts = split(tmp_path)
    parts[1].write_bytes(other[1].read_bytes())
    refused(parts[0], "of 5 tensors in all", "of 6")
    parts = split(tmp_path)
    (tmp_path / "away").mkdir()
    parts[1].rename(tmp_path / "away" / "part")
    parts[1].symlink_to(tmp_path / "away" / "part")
    assert open_source(parts[0]).store  # a link inside the folder
    outside = tmp_path.parent / f"{tmp_path.name}-outside.gguf"
    (tmp_path / "away" / "part").rename(outside)
    parts[1].unlink()
    parts[1].symlink_to(outside)
    refused(parts[0], "link")


def test_parts_with_one_name_twice(tmp_path):
    split(tmp_path, {"x.weight": normal(2, 2), "y.weight": normal(2, 2), "z.weight": normal(2, 2)})
    content = (tmp_path / "m-00002-of-00002.gguf").read_bytes()
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(content.replace(b"z.weight", b"x.weight"))
    refused(tmp_path / "m-00001-of-00002.gguf", "3 tensors, each once", "3, 2 names")


def sparse(path, start, size):
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<I", 3) + start)
        file.truncate(size)
    return path


ONE_FIELD = struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1) + b"k"
SPARSE = {
    "fields": struct.pack("<QQ", 0, 10**9),
    "tensors": struct.pack("<QQ", 10**9, 0),
    "bytes": ONE_FIELD + struct.pack("<IIQ", 9, 0, 10**9),
    "words": ONE_FIELD + struct.pack("<IIQ", 9, 8, 10**9),
    "text": struct.pack("<QQ", 0, 1) + struct.pack("<Q", 10**9),
    "dimensions": struct.pack("<QQQ", 1, 0, 1) + b"k" + struct.pack("<I", 10**8),
}


@pytest.mark.parametrize("case", SPARSE)
def test_counts_of_a_billion_that_the_file_has_room_for(tmp_path, case):
    path = sparse(tmp_path / "a.gguf", SPARSE[case], 16 * 10**9)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if case == "bytes":  # a long array is one step
        assert open_source(path).store.tensors == {}
    else:
        refused(path, "not a readable GGUF file")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_big_endian_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "b.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("x.weight", normal(2, 2))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(tmp_path / "b.gguf", "big-endian")


def refused(path, *texts):
    with pytest.raises(SourceError) as caught:
        open_source(path)
    assert len(str(caught.value).splitlines()) == 5
    for text in texts:
        assert text in str(caught.value)


def test_missing_package_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.gguf", factors())
    load = importlib.import_module

    def without(name, *rest):
        if name == "gguf":
            raise ModuleNotFoundError("No module named 'gguf'", name="gguf")
        return load(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    refused(path, "pip install 'rankscope[gguf]'")


def test_every_cut_is_refused(tmp_path):
    whole = write(tmp_path / "a.gguf", factors(), alpha=16).read_bytes()
    for end in (4, 8, 20, 24, 40, 90, 150, len(whole) // 2, len(whole) - 64):
        (tmp_path / "cut.gguf").write_bytes(whole[:end])
        refused(tmp_path / "cut.gguf", "not a readable GGUF file")


STRING = struct.pack("<Q", 1) + b"k"
HOSTILE = {
    "tensors": struct.pack("<QQ", 2**40, 0),
    "fields": struct.pack("<QQ", 0, 2**60),
    "string": struct.pack("<QQ", 0, 1) + struct.pack("<Q", 2**50),
    "list": struct.pack("<QQ", 0, 1) + STRING + struct.pack("<IIQ", 9, 4, 2**60),
    "lists": struct.pack("<QQ", 0, 1) + STRING + struct.pack("<IIQ", 9, 9, 1) * 2,
    "nested": struct.pack("<QQ", 0, 1) + STRING + struct.pack("<I", 9)
    + struct.pack("<IQ", 9, 1) * 5000,
    "type": struct.pack("<QQ", 0, 1) + STRING + struct.pack("<I", 99),
    "name": struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1) + b"\xff" + struct.pack("<II", 4, 1),
    "offset": struct.pack("<QQ", 1, 0) + STRING + struct.pack("<IQIQ", 1, 4, 0, 2**62),
    "shape": struct.pack("<QQ", 1, 0) + STRING + struct.pack("<IQQIQ", 2, 2**32, 2**32, 0, 0),
    "dimensions": struct.pack("<QQ", 1, 0) + STRING + struct.pack("<I", 2**31),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_headers(tmp_path, case):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + HOSTILE[case] + bytes(64))
    refused(path, "not a readable GGUF file")


def test_names_that_command_a_terminal(tmp_path):
    path = write(tmp_path / "a.gguf", {"\x1b[2J": normal(2, 2)}, adapter=False)
    refused(path, "\\x1b[2J")
