"""The hub, against a server of this file's own that speaks its endpoints on loopback."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors.torch import save

import rankscope as rs
from rankscope.errors import SourceError
from rankscope.io.hub import parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "89abcdef0123456789abcdef0123456789abcdef"
CONFIG_NAME = "adapter_config.json"
CONFIG = json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 3}).encode()

# Opens the addresses it is given, one line of JSON for each.
PROBE = """
import json, sys, time
time.sleep = lambda seconds: None  # between attempts
import rankscope as rs
rs.open_updates(sys.argv[1])
assert "huggingface_hub" not in sys.modules, "imported for a local folder"
for address in sys.argv[2:]:
    base = address.split(" ")[1] if " " in address else None
    try:
        updates = rs.open_updates(address.split(" ")[0], base)
        norms = {name: update.norm() for name, update in updates.items()}
        paths = [file["path"] for file in updates.inputs]
        print(json.dumps({"norms": norms, "paths": paths}))
    except rs.RankscopeError as error:
        print(json.dumps({"error": str(error), "kind": type(error).__name__}))
"""


def adapter(norm):
    """An adapter of one module whose ΔW has this norm at scale 3."""
    down, up = torch.tensor([[1.0, 0.0]]), torch.tensor([[norm / 3], [0.0]])
    stem = "base_model.model.h.0.q.lora_"
    return save({f"{stem}A.weight": down, f"{stem}B.weight": up})


def checkpoint(number):
    return save({"h.0.q.weight": number * torch.eye(2), "pad.weight": torch.ones(40, 40)})


def sharded(names):
    index = {"weight_map": {"h.0.q.weight": names[0], "pad.weight": names[0]}}
    files = {"model.safetensors.index.json": json.dumps(index).encode()}
    shards = {name: checkpoint(4) for name in names if "/" not in name}
    return files | shards | {"consolidated.safetensors": b"\0" * 5000}


ADAPTER = {CONFIG_NAME: CONFIG, "adapter_model.safetensors": adapter(6.0)}
REPOSITORIES = {
    "plain": ADAPTER | {"README.md": b"#", "adapter_model.bin": b"", "optimizer.pt": b"x"},
    "deep": {f"sub/r8/{name}": content for name, content in ADAPTER.items()}
    | {"sub/r64/adapter_model.safetensors": adapter(1.0)},
    "several": {"a.safetensors": adapter(9.0), "b.safetensors": adapter(7.0)},
    "none": {"README.md": b"#"},
    "empty": {},
    "base": {"model.safetensors": checkpoint(1)},
    "sharded": sharded(["model-00001-of-00001.safetensors"]),
    "climbing": sharded(["../../../../secret.safetensors"]),
    "hostile": {"../evil.safetensors": adapter(1.0), "a": b"", "a/b.safetensors": b""},
    "cut-once": ADAPTER,
    "cut": ADAPTER,
    "html": {"adapter_model.safetensors": b"<html>not today</html>"},
    **{status: ADAPTER for status in ("401", "403", "429", "500", "get-429", "get-500")},
}


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: list = []  # noqa: RUF012 - one server per session

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")
        self.seen.append((self.command, self.path, self.headers.get("Authorization")))
        if parts[:2] == ["api", "models"]:
            self.describe(parts[3], parts[5] if len(parts) > 5 else "main")
        elif parts[2:3] == ["resolve"]:
            self.resolve(parts[1], parts[3], "/".join(parts[4:]))
        else:
            self.answer(404)

    def describe(self, name, revision):
        if name.isdigit():
            self.answer(int(name))
        elif name not in REPOSITORIES:
            self.answer(404, {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", "old", "refs%2Fpr%2F1", COMMIT, OLDER):
            self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            files = [
                {"rfilename": file, "size": len(content)}
                for file, content in REPOSITORIES[name].items()
            ]
            content = {"id": f"org/{name}", "sha": commit_of(revision), "siblings": files}
            self.answer(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def resolve(self, name, revision, file):
        content = REPOSITORIES[name].get(file)
        if content is None:
            self.answer(404, {"X-Error-Code": "EntryNotFound"})
            return
        if name.startswith("get-") and self.command == "GET":
            self.answer(int(name[4:]))
            return
        if commit_of(revision) == OLDER and file == "adapter_model.safetensors":
            content = adapter(5.0)
        etag = f'"{name}-{commit_of(revision)[:4]}-{file.replace("/", "-")}"'
        headers = {"ETag": etag, "X-Repo-Commit": commit_of(revision)}
        start = int(self.headers.get("Range", "bytes=0-")[6:].split("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        earlier = [seen for seen in self.seen if seen[:2] == ("GET", self.path)][:-1]
        cut = file != CONFIG_NAME and (name == "cut" or (name == "cut-once" and not earlier))
        self.answer(206 if start else 200, headers, content[start:], cut=cut)

    def answer(self, status, headers=(), content=b"", cut=False):
        self.send_response(status)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.close_connection = True


def commit_of(revision):
    return OLDER if revision in ("old", OLDER) else COMMIT


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A function from addresses to what opening them gave, with one cache for all."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = tmp_path_factory.mktemp("hf")

    def opened(*addresses, **environment):
        env = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "PYTHONPATH": str(ROOT),
            **environment,
        }
        Hub.seen.clear()
        command = [sys.executable, "-c", PROBE, str(ROOT / "data" / "sql-r8-seed0"), *addresses]
        run = subprocess.run(
            command, env=env, capture_output=True, text=True, check=False, timeout=120
        )
        assert run.returncode == 0, run.stderr
        return [json.loads(line) for line in run.stdout.splitlines()]

    yield opened
    server.shutdown()
    server.server_close()


def fetched(name, seen):
    """The files of a repository whose content was asked for."""
    start = f"/org/{name}/resolve/"
    gets = (path for command, path, _ in seen if command == "GET")
    return {path.removeprefix(start).split("/", 1)[1] for path in gets if path.startswith(start)}


# What opens, and the norm of its one update; r = 1 and alpha = 3, without a configuration 1.
OPENS = {
    "hf://org/plain": 6,
    "hf://org/plain@old": 5,
    f"hf://org/plain@{OLDER}": 5,
    "hf://org/plain@refs/pr/1": 6,
    "hf://org/deep/sub/r8": 6,
    "hf://org/deep/sub/r64/adapter_model.safetensors": 1 / 3,
    "hf://org/several/b.safetensors": 7 / 3,
    "hf://org/sharded hf://org/base": 3 * 2**0.5,
}


@pytest.fixture(scope="module")
def online(hub):
    """The answers, and what the server saw."""
    return hub(*OPENS, HF_TOKEN="hf_secret"), list(Hub.seen)


def test_addresses_open_like_folders(online):
    answers, seen = online
    assert [answer["norms"]["h.0.q"] for answer in answers] == pytest.approx([*OPENS.values()])
    for answer, commit in zip(answers, [COMMIT, OLDER, OLDER, COMMIT], strict=False):
        assert all(f"snapshots/{commit}/" in path for path in answer["paths"])
    assert {token for *_, token in seen} == {"Bearer hf_secret"}


def test_no_more_is_fetched_than_is_needed(online):
    _, seen = online
    assert fetched("plain", seen) == {"adapter_config.json", "adapter_model.safetensors"}
    assert fetched("several", seen) == {"b.safetensors"}
    shards = {"model.safetensors.index.json", "model-00001-of-00001.safetensors"}
    assert fetched("sharded", seen) == shards


def test_offline_reads_what_was_fetched_and_asks_nothing(hub, online):
    missing = ("hf://org/never-fetched", "hf://org/deep/elsewhere")
    *again, never, elsewhere = hub(*OPENS, *missing, HF_HUB_OFFLINE="1")
    assert Hub.seen == []
    assert again == online[0]
    assert "not in the cache" in never["error"]
    assert "no such file or folder" in elsewhere["error"]


FAILURES = {
    "hf://org/401": "does not exist, or is private",
    "hf://org/403": "forbids",
    "hf://org/429": "too many requests",
    "hf://org/500": "the hub has failed",
    "hf://org/get-429": "too many requests",
    "hf://org/get-500": "the hub has failed",
    "hf://org/absent": "no such thing",
    "hf://org/plain@v9": "no such thing",
    "hf://org/plain/elsewhere": "no such file or folder",
    "hf://org/deep": "no single adapter or checkpoint",
    "hf://org/several": "a.safetensors, b.safetensors",
    "hf://org/none": "no single adapter or checkpoint",
    "hf://org/empty": "no such file or folder",
    "hf://org/hostile": "the transfer from the hub has failed",
    "hf://org/climbing hf://org/base": "shard",
    "hf://org/cut": "the transfer from the hub has failed",
    "hf://org/html": "safetensors",
}


def test_failures_are_five_lines(hub):
    answers = hub(*FAILURES)
    for (address, words), answer in zip(FAILURES.items(), answers, strict=True):
        assert answer.get("kind") == "SourceError", (address, answer)
        assert words in answer["error"], address
        assert answer["error"].count("\n") == 4, address
    for name in ("several", "deep", "hostile"):
        assert fetched(name, Hub.seen) == set()


def test_a_transfer_that_was_cut_leaves_no_half_file(hub):
    *_, answer = hub("hf://org/cut-once", "hf://org/cut-once")
    assert answer["norms"] == {"h.0.q": pytest.approx(6.0)}
    paths = [path for command, path, _ in Hub.seen if command == "GET"]
    assert sum(path.endswith("adapter_model.safetensors") for path in paths) == 2


def test_nobody_listens(hub):
    (answer,) = hub("hf://org/plain-2", HF_ENDPOINT="http://127.0.0.1:1")
    assert answer["kind"] == "SourceError"
    assert answer["error"].count("\n") == 4


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SourceError, match="another package") as caught:
        rs.open_updates("hf://org/name")
    assert "pip install 'rankscope[hf]'" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf://org/name", ("org/name", "main", "")),
        ("hf://org/name/", ("org/name", "main", "")),
        ("hf://org/na.me-1@refs/pr/12/sub", ("org/na.me-1", "refs/pr/12", "sub")),
        ("hf://org/name@feature%2Fx/sub", ("org/name", "feature/x", "sub")),
        ("hf://org/name/a@b/c", ("org/name", "main", "a@b/c")),
    ],
)
def test_parts_of_an_address(text, parts):
    address = parse(text)
    assert (address.repository, address.revision, address.inside) == parts


@pytest.mark.parametrize(
    "text",
    [
        "hf://",
        "hf://name",
        "hf://org/",
        "hf://org/name@",
        "hf://org/name@../x",
        "hf://org/name@..%2F..%2Fx",
        "hf://org/name/../other",
        "hf://org/name//x",
        "hf://../name",
        "hf://org/name/a\\b",
        "hf://org/name/\x1b[2J",
    ],
)
def test_what_is_no_address(text):
    with pytest.raises(SourceError, match="no address on the hub") as caught:
        parse(text)
    assert str(caught.value).isascii()
    assert "\x1b" not in str(caught.value)


def test_the_package_reaches_no_network_by_itself():
    sources = {path for path in (ROOT / "rankscope").rglob("*.py") if path.parent.name != "hub"}
    assert not [path for path in sources if "huggingface_hub" in Path(path).read_text()]
