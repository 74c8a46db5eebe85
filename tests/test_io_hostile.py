"""Files made to harm: each is refused in five lines, quickly, and nothing in it runs."""

import io
import json
import pickle
import resource
import struct
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rankscope.errors import SourceError
from rankscope.io.sources import open_source, open_weights

BOUND = 300_000  # kB that a refusal may add; every trap here asks for gigabytes


@pytest.fixture(autouse=True)
def bounded():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < BOUND


def refused(path, *parts):
    with pytest.raises(SourceError) as caught:
        open_source(path)
    text = str(caught.value)
    lines = text.split("\n")
    assert len(lines) == 5
    assert all(line.isprintable() for line in lines)
    for part in parts:
        assert part in text
    return caught.value


def entry(start, end, *, shape=None, dtype="F32"):
    shape = [(end - start) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def write_header(path, header, size=8):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    return path


SAFETENSORS = {
    "overlap": {"a": entry(0, 8), "b": entry(4, 8)},
    "hole": {"a": entry(0, 4), "b": entry(8, 12)},
    "trailing": {"a": entry(0, 4)},
    "truncated": {"a": entry(0, 400)},
    "overflow": {"a": entry(0, 8, shape=[2**62, 2**62])},
    "negative": {"a": entry(0, 8, shape=[-2])},
    "lying shape": {"a": entry(0, 8, shape=[10**9, 10**9])},
    "unknown dtype": {"a": entry(0, 8, dtype="F31")},
    "metadata": {"__metadata__": {"a": [1]}, "a": entry(0, 8)},
    "deep": b"[" * 200_000,
    "no tensors but text": b'{"a": "b"}',
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors_headers(tmp_path, name):
    refused(write_header(tmp_path / "a.safetensors", SAFETENSORS[name]), "not a readable")


@pytest.mark.parametrize("length", [0x80, 0x4B50])
def test_lengths_that_spell_other_containers(tmp_path, length):
    text = json.dumps({"a": entry(0, 8)}).encode().ljust(length)
    store = open_source(write_header(tmp_path / "a.safetensors", text)).store
    assert torch.equal(store.read("a"), torch.zeros(2))


@pytest.mark.parametrize("inner", [True, False])
def test_duplicate_keys(tmp_path, inner):
    one = json.dumps(entry(0, 8))
    text = f'{{"a": {one[:-1]}, "dtype": "I32"}}}}' if inner else f'{{"a": {one}, "a": {one}}}'
    refused(write_header(tmp_path / "a.safetensors", text.encode()), "not a readable")


@pytest.mark.parametrize("name", ["a\x1b[2J", "a\r\nwhere: b", "a\u202egpj"])
@pytest.mark.parametrize("container", ["safetensors", "torch", "npz"])
def test_names_that_command_a_terminal(tmp_path, name, container):
    path = tmp_path / "a.safetensors"
    if container == "safetensors":
        save_file({name: torch.ones(2)}, path)
    elif container == "torch":
        torch.save({name: torch.ones(2)}, path)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            content = io.BytesIO()
            np.save(content, np.ones(2))
            archive.writestr(f"{name}.npy", content.getvalue())
    refused(path, "control characters")


def write_index(folder, weight_map, name="model.safetensors.index.json"):
    folder.mkdir(exist_ok=True)
    save_file({"a": torch.ones(2, 2)}, folder / "model-1.safetensors")
    content = weight_map if isinstance(weight_map, str) else json.dumps({"weight_map": weight_map})
    (folder / name).write_text(content)
    return folder / name


@pytest.mark.parametrize(
    "shard",
    [
        "../secret.safetensors",
        "x/../../secret.safetensors",
        "/secret.safetensors",
        "C:\\secret.safetensors",
        "C:secret.safetensors",
        "\\\\server\\share\\secret.safetensors",
        "//server/share/secret.safetensors",
        "..\\secret.safetensors",
        "sub\\secret.safetensors",
        "secret.bin",
        "secret",
        "",
        "secret\0.safetensors",
        "\x1b[2J.safetensors",
        7,
        None,
        ["model-1.safetensors"],
    ],
)
def test_index_names(tmp_path, shard):
    save_file({"a": torch.ones(2, 2)}, tmp_path / "secret.safetensors")
    path = write_index(tmp_path / "model", {"b": "model-1.safetensors", "a": shard})
    refused(path, "index of a sharded checkpoint", "a shard named")
    refused(path.parent, "a shard named")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": ["a"]}', "[" * 100_000]
)
def test_index_content(tmp_path, text):
    path = write_index(tmp_path / "model", text)
    refused(path, "index of a sharded checkpoint" if text else "empty")


def test_index_of_the_torch_kind_takes_no_other(tmp_path):
    path = write_index(
        tmp_path / "model", {"a": "model-1.safetensors"}, "pytorch_model.bin.index.json"
    )
    refused(path, "a shard named 'model-1.safetensors'")


def test_huge_indexes(tmp_path):
    path = write_index(tmp_path / "model", " " * 10_000_001)
    refused(path, "10,000,000 bytes")
    shards = {f"t{n}": f"{n}.safetensors" for n in range(10_001)}
    refused(write_index(tmp_path / "model", shards), "10,001 shards")


def test_shards_that_lack_something(tmp_path):
    path = write_index(tmp_path / "model", {"a": "gone.safetensors"})
    refused(path, "shard of the checkpoint is missing", "gone.safetensors")
    path = write_index(tmp_path / "model", {"b": "model-1.safetensors"})
    refused(path, "a tensor that its shard lacks", "'b'")
    (tmp_path / "model" / "folder.safetensors").mkdir()
    refused(write_index(tmp_path / "model", {"a": "folder.safetensors"}), "missing")
    (tmp_path / "model" / "cut.safetensors").write_bytes(b"\x08")
    refused(write_index(tmp_path / "model", {"a": "cut.safetensors"}), "not a readable")


@pytest.mark.parametrize("snapshot", [False, True])
def test_links_out_of_the_folder(tmp_path, snapshot):
    secret = tmp_path / "elsewhere" / "secret.safetensors"
    secret.parent.mkdir()
    save_file({"a": torch.ones(2, 2)}, secret)
    folder = tmp_path / "models--o--n" / "snapshots" / "abc" if snapshot else tmp_path / "model"
    folder.mkdir(parents=True)
    (folder / "x.safetensors").symlink_to(secret)
    refused(folder, "link to another place")
    refused(write_index(folder, {"a": "x.safetensors"}), "link to another place")


def test_link_to_itself(tmp_path):
    (tmp_path / "x.safetensors").symlink_to(tmp_path / "x.safetensors")
    refused(tmp_path)
    refused(tmp_path / "x.safetensors")


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrap", [lambda e: e, lambda e: {"model": {"a": torch.ones(2), "b": e}}])
def test_pickles_are_not_executed(tmp_path, legacy, wrap):
    path = tmp_path / "a.bin"
    torch.save(wrap(Evil(tmp_path / "made")), path, _use_new_zipfile_serialization=not legacy)
    refused(path, "it asks for io.open", "nothing was executed")
    assert not (tmp_path / "made").exists()


def test_plain_pickles_and_policies_are_not_executed(tmp_path):
    (tmp_path / "a.pt").write_bytes(pickle.dumps(Evil(tmp_path / "made")))
    refused(tmp_path / "a.pt", "not a readable torch file")
    (tmp_path / "a.pt").write_bytes(b"\x80\x02\xff")
    assert "weights_only" not in str(refused(tmp_path / "a.pt", "got: Unsupported operand"))
    torch.save(Evil(tmp_path / "made"), tmp_path / "policy.pth")
    with zipfile.ZipFile(tmp_path / "best.zip", "w") as archive:
        archive.write(tmp_path / "policy.pth", "policy.pth")
    refused(tmp_path / "best.zip", "not a readable torch file", "io.open")
    assert not (tmp_path / "made").exists()


def test_distributed_checkpoints_are_not_opened(tmp_path):
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "made")))
    (tmp_path / "__0_0.distcp").write_bytes(b"x")
    refused(tmp_path, "distributed checkpoint", "--allow-pickle")
    refused(tmp_path / "__0_0.distcp", "name its folder")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(1).as_strided((10**10,), (0,)),
        torch.ones(4).as_strided((2, 3), (1, 1)),
        torch.eye(3).to_sparse(),
        torch.ones(3, device="meta"),
    ],
    ids=["stride 0", "overlapping", "sparse", "meta"],
)
def test_tensors_that_are_no_plain_arrays(tmp_path, tensor):
    torch.save({"fine": torch.ones(2), "bad": tensor}, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "not stored as a plain array", "'bad'")


def repacked(path, *, compress=zipfile.ZIP_DEFLATED, extra=()):
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compress) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        for name, content in extra:
            archive.writestr(name, content)
    return path


def test_packed_torch_archives(tmp_path):
    torch.save({"a": torch.zeros(1_000_000)}, tmp_path / "a.pt")
    refused(repacked(tmp_path / "a.pt"), "the compressed member")
    torch.save({"a": torch.zeros(1_000_000)}, tmp_path / "policy.pth")
    with zipfile.ZipFile(tmp_path / "best.zip", "w") as archive:
        archive.write(repacked(tmp_path / "policy.pth"), "policy.pth")
    refused(tmp_path / "best.zip", "the compressed member")


def test_archives_whose_directory_lies(tmp_path):
    torch.save({"a": torch.ones(100)}, tmp_path / "a.pt")
    with pytest.warns(UserWarning, match="Duplicate"):
        repacked(tmp_path / "a.pt", compress=zipfile.ZIP_STORED, extra=[("a/version", b"4")])
    refused(tmp_path / "a.pt", "two members of one name")
    path = tmp_path / "b.pt"
    torch.save({"a": torch.ones(100)}, path)
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02")
    content[place + 24 : place + 28] = struct.pack("<I", 2**31)  # the size in the directory
    path.write_bytes(content)
    refused(path, "members of 2,147")


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_that_fill_memory(tmp_path, zipped):
    path = tmp_path / "a.pt"
    call = b"c__builtin__\nbytearray\n\x8a\x05" + (2**33).to_bytes(5, "little") + b"\x85R."
    path.write_bytes(b"\x80\x02" + call)
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", b"\x80\x02" + call)
            archive.writestr("a/version", "3\n")
    refused(path, "builtins.bytearray")


def test_storages_that_are_not_there(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"a": torch.ones(200)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    place = content.index(b"K\xc8", content.index(b"storage"))
    claim = b"\x8a\x05" + (2**31).to_bytes(5, "little")
    path.write_bytes(content[:place] + claim + content[place + 2 :])
    refused(path, "not a readable torch file")


def test_dictionaries_that_hold_themselves(tmp_path):
    content = {"step": torch.tensor(1)}
    content["model"] = content
    torch.save(content, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", "no tensors found")


def test_arrays_of_objects(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([Evil(tmp_path / "made")], dtype=object))
    refused(tmp_path / "a.npz", "holds Python objects")
    assert not (tmp_path / "made").exists()


def write_npy(path, header, content=b"", compress=zipfile.ZIP_STORED):
    text = header.encode() + b"\n"
    head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr("a.npy", head + content)
    return path


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}", "not as large"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}", "not as large"),
        ("{'descr': '<f4', 'fortran_order': False}", "Header"),
        ("__import__('os').system('true')", "not a readable"),
        ("(" * 5000, "not a readable"),
    ],
)
def test_array_headers(tmp_path, header, message):
    refused(write_npy(tmp_path / "a.npz", header, bytes(8)), message)


def test_packed_arrays_that_unpack_without_end(tmp_path):
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (50000000,)}"
    path = write_npy(tmp_path / "a.npz", header, bytes(50_000_000), zipfile.ZIP_DEFLATED)
    refused(path, "members of 50,")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("flax_model.msgpack", "Flax"),
        ("tf_model.h5", "TensorFlow"),
        ("model.ckpt.index", "TensorFlow"),
        ("model.onnx", "ONNX"),
        ("model.gguf", "GGUF"),
        ("model.nemo", "NeMo"),
    ],
)
def test_foreign_containers_are_named(tmp_path, name, kind):
    (tmp_path / name).write_bytes(b"\x89some other bytes")
    refused(tmp_path / name, kind)
    refused(tmp_path, kind)


def test_file_names_that_command_a_terminal(tmp_path):
    for n in range(2):
        save_file({"a": torch.ones(2, 2)}, tmp_path / f"\x1b[2J{n}.safetensors")
    refused(tmp_path, "\\x1b[2J0.safetensors")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "\x1b[2J.bin").write_bytes(b"text")
    refused(tmp_path / "sub", "\\x1b[2J.bin", "not a file of tensors")


def test_a_billion_empty_experts(tmp_path):
    header = {"experts.up": entry(0, 0, shape=[10**9, 0, 4]), "a": entry(0, 4, shape=[1, 1])}
    updates = open_weights(write_header(tmp_path / "a.safetensors", header, 4))
    assert (updates.names, updates.unread) == (["a"], ("experts.up",))


def test_packed_dtypes_are_listed_and_not_read(tmp_path):
    header = {"a.weight": entry(0, 4, shape=[2, 4], dtype="F4"), "b": entry(4, 8, shape=[1])}
    path = write_header(tmp_path / "a.safetensors", header)
    assert open_source(path).store.tensors["a.weight"].bytes == 4
    assert open_weights(path).unread == ("a.weight", "b")
