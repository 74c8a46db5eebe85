"""Parts of files on the hub, against a server of this file's own that counts what it sends."""

import contextlib
import importlib
import json
import pickle
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from test_io_hostile import SAFETENSORS, entry

import rankscope as rs
from rankscope.errors import SourceError
from rankscope.io.hub import remote
from rankscope.io.sources import open_source

hub = pytest.importorskip("huggingface_hub")
for module in ("constants", "file_download", "utils"):
    importlib.import_module(f"huggingface_hub.{module}")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WIDTH = 1100  # float32, 4.84 MB: a block of its own
NAMES = [f"h.{n}.q.weight" for n in range(4)]


def checkpoint(seed, names=NAMES, width=WIDTH):
    rng = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(width, width, generator=rng) for name in names}
    small = {f"{name}.bias": torch.arange(5, dtype=torch.bfloat16) for name in names}
    return tensors | small


def sharded(tensors):
    files, index = {}, {}
    for n, name in enumerate(tensors, 1):
        file = f"model-{n:05}-of-{len(tensors):05}.safetensors"
        files[file], index[name] = save({name: tensors[name]}), file
    return files | {"model.safetensors.index.json": json.dumps({"weight_map": index}).encode()}


class Server:
    """Repositories by name, how each misbehaves, and what was asked of it."""

    def __init__(self):
        self.files, self.how, self.seen = {}, {}, []
        served = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                served.handle(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=[0.02], daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def handle(self, request):
        parts = request.path.split("?")[0].strip("/").split("/")
        token = request.headers.get("Authorization")
        record = {"path": request.path, "method": request.command, "token": token, "sent": 0}
        self.seen.append(record)
        if parts[:2] == ["api", "models"]:
            files = [
                {"rfilename": file, "size": len(content)}
                for file, content in self.files[parts[3]].items()
            ]
            if self.how.get(parts[3]) == "no sizes":
                files = [{"rfilename": file["rfilename"]} for file in files]
            content = {"id": f"org/{parts[3]}", "sha": COMMIT, "siblings": files}
            self.answer(request, 200, json.dumps(content).encode())
        elif parts[2:3] == ["resolve"]:
            name, file = parts[1], "/".join(parts[4:])
            self.resolve(request, record, self.how.get(name), self.files[name].get(file), file)
        else:
            self.answer(request, 404)

    def resolve(self, request, record, how, content, file):
        if content is None:
            self.answer(request, 404)
            return
        headers = {"ETag": f'"{hash((request.path, len(content)))}"', "X-Repo-Commit": COMMIT}
        asked = request.headers.get("Range")
        small = len(content) < 2**20
        if how in STATUSES and asked:
            self.answer(request, STATUSES[how])
        elif how and how.startswith("http") and asked:
            target = f"{how}{request.path}" if how != "http-circle" else request.path
            self.answer(request, 302, headers={"Location": target})
        elif asked is None or how == "ignores":
            self.answer(request, 200, content, headers, record=record)
        else:
            start, stop = (int(n) for n in asked.removeprefix("bytes=").split("-"))
            stop = min(stop + 1, len(content))
            part, total = content[start:stop], len(content)
            if how == "shifts":
                start, stop = start + 1, stop + 1
            if how == "grows":
                total += 8
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{total}"
            if how == "no range":
                del headers["Content-Range"]
            cut = how == "cuts" or (how == "cuts once" and not small and self.count(file) < 3)
            if how == "too much":
                part += bytes(1000)
            self.answer(request, 206, part, headers, cut=cut, record=record)

    def answer(self, request, status, content=b"", headers=(), *, cut=False, record=None):
        request.send_response(status)
        for key, value in dict(headers).items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if request.command == "HEAD":
            return
        content = content[: len(content) // 2] if cut else content
        request.close_connection = cut
        if record:
            record["sent"] = len(content)
        with contextlib.suppress(OSError):
            request.wfile.write(content)

    def count(self, file):
        return sum(file in one["path"] and one["method"] == "GET" for one in self.seen)

    @property
    def sent(self):
        return sum(one["sent"] for one in self.seen)

    @property
    def listings(self):
        return [one["path"] for one in self.seen if "/api/models" in one["path"]]


STATUSES = {"401": 401, "403": 403, "404": 404, "416": 416, "429": 429, "500": 500, "503": 503}


@pytest.fixture
def server(tmp_path, monkeypatch):
    running = Server()
    monkeypatch.setattr(hub.constants, "ENDPOINT", running.url)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (hub.constants, hub.file_download):
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield running
    running.http.shutdown()
    running.http.server_close()


@pytest.fixture(scope="module")
def base():
    return checkpoint(0)


@pytest.fixture(scope="module")
def packed(base):
    return save(base)


def adapter():
    stem = f"base_model.model.{NAMES[2].removesuffix('.weight')}.lora_"
    a, b = torch.ones(1, WIDTH), torch.ones(WIDTH, 1)
    config = json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}).encode()
    tensors = {f"{stem}A.weight": a, f"{stem}B.weight": b}
    return {"adapter_config.json": config, "adapter_model.safetensors": save(tensors)}


def test_info_fetches_headers_only(server, packed):
    server.files["base"] = {"model.safetensors": packed, "config.json": b"{}"}
    row = rs.info("hf://org/base").table.iloc[0]
    assert (row["modules"], row["bytes"]) == (4, len(packed) - header_length(packed))
    assert row["source"] == "hf://org/base/model.safetensors"
    assert server.sent <= 100_000 + 2
    assert len(server.listings) == 1


class Zeros:
    """A file of any size that takes no room."""

    def __init__(self, header, size):
        self.header, self.size = header, size

    def __len__(self):
        return self.size

    def __getitem__(self, part):
        start, stop, _ = part.indices(self.size)
        return self.header[start:stop].ljust(stop - start, b"\0")


def test_gigabytes_cost_their_header(server):
    each = 2 * 30_000**2
    fields = {
        f"h.{n}.q.weight": entry(n * each, (n + 1) * each, shape=[30_000] * 2, dtype="BF16")
        for n in range(3)
    }
    fields["tail.weight"] = entry(3 * each, 3 * each + 8, shape=[1, 2])
    text = json.dumps(fields).encode()
    header = struct.pack("<Q", len(text)) + text
    server.files["base"] = {"model.safetensors": Zeros(header, len(header) + 3 * each + 8)}
    row = rs.info("hf://org/base").table.iloc[0]
    assert (row["modules"], row["bytes"]) == (4, 5_400_000_008)
    assert server.sent == 100_000
    # The last bytes of the file, and no others.
    assert torch.equal(open_source("hf://org/base").store.read("tail.weight"), torch.zeros(1, 2))
    assert server.sent == 200_008


def header_length(content):
    return 8 + int.from_bytes(content[:8], "little")


def test_only_the_tensors_needed_are_fetched(server, base, packed):
    server.files |= {"base": {"model.safetensors": packed}, "adapter": adapter()}
    updates = rs.open_updates("hf://org/adapter", "hf://org/base")
    before = server.sent
    (row,) = rs.rank(updates).table.itertuples()
    assert row.relative_norm == pytest.approx(WIDTH / base[NAMES[2]].double().norm().item())
    assert server.sent - before == 4 * WIDTH**2


def test_every_tensor_comes_as_it_is_stored(server, base, packed):
    server.files["base"] = {"model.safetensors": packed}
    store = pickle.loads(pickle.dumps(open_source("hf://org/base").store))
    before = len(server.seen)
    for name, tensor in base.items():
        found = store.read(name)
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)
    # The four matrices; the biases beside them come together.
    assert len(server.seen) - before == 5
    store.read(NAMES[0]).zero_()
    assert torch.equal(store.read(NAMES[0]), base[NAMES[0]])


def test_provenance_is_the_commit_and_the_header(server, packed, tmp_path):
    server.files |= {"base": {"model.safetensors": packed}, "adapter": adapter()}
    (tmp_path / "model.safetensors").write_bytes(packed)
    local = open_source(tmp_path / "model.safetensors").store.provenance
    store = open_source("hf://org/base").store
    address = f"hf://org/base@{COMMIT}/model.safetensors"
    assert store.provenance == local | {"path": None, "address": address, "commit": COMMIT}
    *records, config = rs.open_updates("hf://org/adapter").inputs
    assert [record["commit"] for record in (*records, config)] == [COMMIT, COMMIT]
    assert config["address"] == f"hf://org/adapter@{COMMIT}/adapter_config.json"


def test_shards_stay_and_are_opened_together(server, base):
    server.files["base"] = sharded(base) | {"model-00009-of-00009.safetensors": b"x"}
    store = open_source("hf://org/base").store
    assert set(store.tensors) == set(base)
    assert server.sent < 4 * 100_000 + 20_000  # four shards, four small ones, the index
    # The index decides: what else lies there is not looked at.
    assert not server.count("00009")
    assert len(server.listings) == 1
    store = pickle.loads(pickle.dumps(store))
    before = server.sent
    assert torch.equal(store.read(NAMES[1]), base[NAMES[1]])
    assert server.sent - before == 4 * WIDTH**2
    assert len(store.files) == 1 + len(base)


def test_a_missing_shard_is_named(server, base):
    files = sharded(base)
    del files["model-00002-of-00008.safetensors"]
    server.files["base"] = files
    with pytest.raises(SourceError, match="a shard of the checkpoint is missing") as caught:
        open_source("hf://org/base")
    assert "00002" in caught.value.expected


def test_sources_are_called_by_their_address(server, tmp_path):
    torch.save({"model": {"a": torch.ones(2, 2)}, "ema": {"a": torch.eye(2)}}, tmp_path / "x.pt")
    server.files |= {"adapter": adapter(), "base": {"x.pt": (tmp_path / "x.pt").read_bytes()}}
    updates = rs.open_updates("hf://org/adapter@v1")
    assert updates.source == "hf://org/adapter@v1/adapter_model.safetensors"
    store = open_source("hf://org/base::ema").store
    assert store.label == "hf://org/base/x.pt::ema"
    assert torch.equal(store.read("a"), torch.eye(2))
    with pytest.raises(SourceError, match="holds one model"):
        open_source("hf://org/adapter::ema")


def test_distributed_checkpoints_are_not_fetched(server):
    server.files["base"] = {".metadata": b"x", "__0_0.distcp": b"x"}
    with pytest.raises(SourceError, match="can execute code") as caught:
        open_source("hf://org/base", allow_pickle=True)
    assert "download the folder" in caught.value.fix
    assert server.sent == 0


def test_all_parts_of_a_split_gguf_come_whole(server, tmp_path):
    from test_io_gguf import TENSORS, split

    parts = split(tmp_path / "gguf")
    server.files["base"] = {f"q8/{part.name}": part.read_bytes() for part in parts}
    server.files["base"]["q8/m-00001-of-00009.gguf"] = b"GGUF"
    store = open_source(f"hf://org/base/q8/{parts[1].name}").store
    assert set(store.tensors) == set(TENSORS)
    assert not server.count("of-00009")


def test_a_quantised_base_comes_with_its_configuration(server):
    fp8 = torch.arange(-120, 120, dtype=torch.float32).reshape(12, 20).to(torch.float8_e4m3fn)
    tensors = {"h.0.q.weight": fp8, "h.0.q.weight_scale_inv": torch.tensor([[2.0]])}
    padding = {"pad.weight": torch.zeros(1500, 1500)}
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    config = json.dumps({"quantization_config": settings}).encode()
    server.files["base"] = {"model.safetensors": save(tensors | padding), "config.json": config}
    store = open_source("hf://org/base").store
    assert torch.equal(store.read("h.0.q.weight"), fp8.float() * 2)
    names = [Path(file.get("address") or file["path"]).name for file in store.files]
    assert names == ["model.safetensors", "config.json"]
    assert server.sent < 110_000


def test_a_cached_file_is_used_and_offline_asks_nothing(server, base, packed, monkeypatch):
    server.files["base"] = {"model.safetensors": packed}
    hub.hf_hub_download("org/base", "model.safetensors")
    server.seen.clear()
    store = open_source("hf://org/base").store
    assert torch.equal(store.read(NAMES[0]), base[NAMES[0]])
    assert [one["path"] for one in server.seen if one["method"] == "GET"] == server.listings
    server.seen.clear()
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    again = open_source("hf://org/base").store
    assert again.provenance == store.provenance
    assert server.seen == []


@pytest.mark.parametrize("how", ["ignores", "no sizes", "cuts once", "too much", "small"])
def test_servers_that_are_made_do_with(server, base, packed, how):
    content = save({"h.0.q.weight": torch.eye(3)}) if how == "small" else packed
    server.files["base"], server.how["base"] = {"model.safetensors": content}, how
    store = open_source("hf://org/base").store
    expected = torch.eye(3) if how == "small" else base[NAMES[0]]
    assert torch.equal(store.read(NAMES[0]), expected)
    if how == "ignores":  # the whole file once, and what a socket holds of the refused answer
        assert store.provenance["path"].endswith("model.safetensors")


def test_a_server_that_stops_sending_parts(server, base, packed):
    server.files["base"] = {"model.safetensors": packed}
    store = open_source("hf://org/base").store
    server.how["base"] = "ignores"
    assert torch.equal(store.read(NAMES[1]), base[NAMES[1]])


REFUSED = {
    "401": "does not exist, or is private",
    "403": "forbids",
    "404": "no such thing",
    "416": "the hub has failed",
    "429": "too many requests",
    "500": "the hub has failed",
    "503": "the hub has failed",
    "cuts": "the transfer from the hub has failed",
    "shifts": "another part of the file",
    "grows": "another part of the file",
    "no range": "another part of the file",
    "http-circle": "on and on",
    "http://example.com": "without encryption",
    "http://[": "the transfer from the hub has failed",
}


@pytest.mark.parametrize("how", REFUSED)
def test_servers_that_are_not(server, packed, how):
    server.files["base"], server.how["base"] = {"model.safetensors": packed}, how
    with pytest.raises(SourceError, match=REFUSED[how]) as caught:
        open_source("hf://org/base")
    assert len(str(caught.value).splitlines()) == 5
    assert "hf_secret" not in str(caught.value)
    if how in STATUSES:
        assert len(server.seen) == (5 if how in ("429", "500", "503") else 2)


@pytest.fixture(params=["httpx", "requests"])
def client(request, monkeypatch):
    """Both clients that huggingface_hub has had, behind its one function."""
    if request.param == "requests":
        session = pytest.importorskip("requests").Session()
        monkeypatch.setattr(hub.utils, "get_session", lambda: session)
        yield request.param
        session.close()
    else:
        yield request.param


def test_the_token_goes_to_the_hub_alone(server, base, packed, client):
    other = Server()
    other.files["base"] = server.files["base"] = {"model.safetensors": packed}
    server.how["base"] = other.url
    try:
        store = open_source("hf://org/base").store
        assert torch.equal(store.read(NAMES[3]), base[NAMES[3]])
    finally:
        other.http.shutdown()
        other.http.server_close()
    assert {one["token"] for one in server.seen} == {"Bearer hf_secret"}
    assert {one["token"] for one in other.seen} == {None}
    assert other.sent == 100_000 + 4 * WIDTH**2


@pytest.mark.parametrize("how", ["cuts once", "too much", "cuts", "404"])
def test_both_clients(server, base, packed, client, how):
    server.files["base"], server.how["base"] = {"model.safetensors": packed}, how
    if how in REFUSED:
        with pytest.raises(SourceError, match=REFUSED[how]):
            open_source("hf://org/base")
    else:
        assert torch.equal(open_source("hf://org/base").store.read(NAMES[1]), base[NAMES[1]])


def test_a_hub_without_encryption_is_refused(server, monkeypatch):
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://hub.example.com")
    with pytest.raises(SourceError, match="without encryption"):
        open_source("hf://org/base")
    assert server.seen == []


ONE = b'{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
TWO = b'{"a": %s,"a": %s}' % (ONE, ONE)
HUGE = {
    "length": struct.pack("<Q", 2**60) + b"{" + bytes(9 * 2**20),
    "long header": struct.pack("<Q", 26_000_000) + b"{" + bytes(27_000_000),
    "no header": struct.pack("<Q", 16) + bytes(9 * 2**20),
    "twice": struct.pack("<Q", len(TWO)) + TWO + bytes(8),
}


@pytest.mark.parametrize("case", [*SAFETENSORS, *HUGE])
def test_hostile_headers(server, case):
    content = HUGE.get(case)
    if content is None:
        header = SAFETENSORS[case]
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        content = struct.pack("<Q", len(text)) + text + bytes(8)
    server.files["base"] = {"model.safetensors": content}
    with pytest.raises(SourceError, match="not a readable safetensors file") as caught:
        remote.open_remote(listed(server))
    assert len(str(caught.value).splitlines()) == 5
    assert server.sent <= 300_000


def listed(server):
    from rankscope.io.hub.address import parse
    from rankscope.io.hub.snapshot import meant, take

    return meant(take(parse("hf://org/base")))


def test_long_headers_and_control_characters(server):
    filler = {"pad": "x" * 150_000}
    fields = {"__metadata__": filler, "a\x1b[2J": entry(0, 9 * 2**20)}
    text = json.dumps(fields).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(9 * 2**20)
    server.files["base"] = {"model.safetensors": content}
    assert remote.open_remote(listed(server)).metadata == filler
    with pytest.raises(SourceError, match="control characters"):
        open_source("hf://org/base")
