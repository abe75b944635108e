"""A local server implements the part of the hub's HTTP API that reading needs; no test accesses the internet.

Each process that imports `datasets` takes seconds, so that the configs of all tests are prepared in three: with the
hub, with a server that drops all connections, and in offline mode.
"""

import json
import os
import re
import socketserver
import subprocess
import sys
import threading
import urllib.parse
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

COMMITS = {"main": "a" * 40, "v1": "b" * 40}
TEXTS = [" ".join(f"w{number}x{word}" for word in range(60)) for number in range(200)]


def rows(texts, **others):
    """Return the content of a .jsonl file."""
    return "".join(json.dumps({"text": text, **others}) + "\n" for text in texts).encode()


def tokenizer_json():
    """Return the content of a tokenizer.json whose tokens are the 256 bytes."""
    alphabet = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer.to_str().encode()


CONFIGS = (
    "---\nconfigs:\n- config_name: one\n  data_files: one.jsonl\n- config_name: two\n  data_files: two.jsonl\n---\n"
)
GATED = {"train.jsonl": rows(TEXTS), "tokenizer.json": tokenizer_json()}
# The files of each repository, by kind, name and branch.
REPOSITORIES = {
    ("datasets", "owner/rows", "main"): {"train.jsonl": rows(TEXTS, id=1)},
    ("datasets", "owner/rows", "v1"): {"train.jsonl": rows(TEXTS[:150])},
    ("datasets", "owner/configs", "main"): {
        "README.md": CONFIGS.encode(),
        "one.jsonl": rows(TEXTS[:150]),
        "two.jsonl": rows(TEXTS[50:]),
    },
    ("datasets", "owner/downloaded", "main"): {"train.jsonl": rows(TEXTS[:160])},
    ("datasets", "owner/not-downloaded", "main"): {"train.jsonl": rows(TEXTS[:160])},
    ("datasets", "owner/gated", "main"): GATED,
    ("models", "owner/gated", "main"): GATED,
    ("models", "owner/bytes", "main"): {
        "tokenizer.json": tokenizer_json(),
        "tokenizer_config.json": b'{"eos_token": "<end>"}',
        "model.safetensors": b"weights that are not needed",
    },
}


class Hub(BaseHTTPRequestHandler):
    """Respond as the hub does to `huggingface_hub` 2.4: metadata of repositories, lists of files, and files."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        return

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.server.requests.append(path)
        metadata = re.fullmatch(r"/api/(datasets|models)/(\w+/[\w-]+)(?:/(revision|tree)/(\w+))?(?:/(\w+))?", path)
        file = re.fullmatch(r"/(?:(datasets)/)?(\w+/[\w-]+)/resolve/(\w+)/(.+)", path)
        if metadata:
            kind, name, what, revision, folder = metadata.groups()
            self._send_metadata(self._find(kind, name, revision or "main"), name, is_tree=what == "tree", folder=folder)
        elif file:
            kind, name, revision, file_name = file.groups()
            self._send_file(self._find(kind or "models", name, revision), file_name)
        else:
            self._respond(404, code="EntryNotFound")

    do_HEAD = do_GET

    def _find(self, kind, name, revision):
        """Return the commit and the files of a repository; None for an unknown name, "" for an unknown revision."""
        branches = {branch: files for (k, n, branch), files in REPOSITORIES.items() if (k, n) == (kind, name)}
        if not branches:
            return None
        branch = {commit: branch for branch, commit in COMMITS.items()}.get(revision, revision)
        return (COMMITS[branch], branches[branch]) if branch in branches else ("", {})

    def _send_metadata(self, repository, name, *, is_tree, folder):
        if repository is None or not repository[0]:
            self._respond(404, code="RepoNotFound" if repository is None else "RevisionNotFound")
            return
        commit, files = repository
        if is_tree:
            names = [] if folder else files
            body = [{"type": "file", "oid": "c" * 40, "size": len(files[f]), "path": f} for f in names]
        else:
            siblings = [{"rfilename": f} for f in files]
            body = {"id": name, "sha": commit, "siblings": siblings, "gated": "manual" if files is GATED else False}
        self._respond(200, json.dumps(body).encode(), Content_Type="application/json")

    def _send_file(self, repository, name):
        if repository is None:
            self._respond(404, code="RepoNotFound")
            return
        commit, files = repository
        if files is GATED:
            self._respond(403, code="GatedRepo")
            return
        if name not in files:
            self._respond(404, code="EntryNotFound", X_Repo_Commit=commit)
            return
        content = files[name]
        headers = {"ETag": f'"{hash((commit, name)):x}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
        byte_range = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if byte_range:
            first, last = int(byte_range[1]), min(int(byte_range[2] or len(content)), len(content) - 1)
            headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
            self._respond(206, content[first : last + 1], **headers)
        else:
            self._respond(200, content, **headers)

    def _respond(self, status, body=b"", *, code=None, **headers):
        self.send_response(status)
        for name, value in {**headers, **({"X_Error_Code": code} if code else {})}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class DropConnections(socketserver.BaseRequestHandler):
    """Close each connection without a response."""

    def handle(self):
        self.server.requests.append(self.request.recv(4096).decode().split()[1])


@contextmanager
def serve(handler):
    """Serve on a free port; `requests` of the server are the paths that were requested."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.requests = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


# Prepares configs, downloads datasets, and prints the meta.json or the refusal of each config. A process of its own,
# because the libraries of the hub read the environment when they are imported.
PREPARE = """
import json, sys
from pathlib import Path
from hpopt.errors import ConfigError
from hpopt.training.config import PretrainConfig
from hpopt.training.data import prepare

def try_to_prepare(changes):
    try:
        return prepare(PretrainConfig(vocab_size=300, sequence_length=16, **changes), Path("cache")).meta
    except ConfigError as error:
        return {"refused": str(error)}

configs, downloads = json.loads(sys.argv[1])
print("prepared", json.dumps({name: try_to_prepare(changes) for name, changes in configs.items()}))
for name in downloads:
    import datasets
    datasets.load_dataset(name, split="train")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the working folder of all processes, with a dataset that is not on the hub."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "a.txt").write_text("<|endoftext|>".join(TEXTS))
    (folder / "b.txt").write_text("<|endoftext|>".join(TEXTS[:150]))
    return folder


def prepare(folder, server, configs, downloads=(), **environment):
    """Prepare configs by name in another process, with a server as the hub."""
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, json.dumps([configs, downloads])],
        env={
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
            "HF_HOME": str(folder / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            **environment,
        },
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("prepared "))
    return json.loads(line.removeprefix("prepared "))


STREAMED = {"dataset": "owner/rows", "max_documents": 180}
TOKENIZED = {"dataset": "a.txt", "tokenizer": "owner/bytes"}
CONFIGURED = {"dataset": "owner/configs", "max_documents": 150}
BY_TOKENS = {"dataset": "owner/rows", "max_train_tokens": 4000}


@pytest.fixture(scope="module")
def online(folder):
    """Prepare configs with the hub, and download a dataset; return the results by name, and the requests."""
    configs = {
        "streamed": STREAMED,
        "tokenized": TOKENIZED,
        "one": {**CONFIGURED, "dataset_config": "one"},
        "two": {**CONFIGURED, "dataset_config": "two"},
        "unknown configuration": {**CONFIGURED, "dataset_config": "three"},
        "no configuration": CONFIGURED,
        "pinned": {"dataset": "owner/rows@v1", "max_documents": 1000},
        "by tokens": BY_TOKENS,
        "by tokens and documents": {**BY_TOKENS, "max_documents": 190},
        "no field": {"dataset": "owner/rows", "max_documents": 5, "text_field": "body"},
        "unknown": {"dataset": "owner/nothing", "max_documents": 5},
        "gated": {"dataset": "owner/gated", "max_documents": 5},
        "no revision": {"dataset": "owner/rows@v2", "max_documents": 5},
        "gated tokenizer": {**TOKENIZED, "tokenizer": "owner/gated"},
        "unknown tokenizer": {**TOKENIZED, "tokenizer": "owner/nothing"},
    }
    with serve(Hub) as server:
        return prepare(folder, server, configs, downloads=["owner/downloaded"]), server.requests


def test_a_dataset_is_streamed_from_the_hub(online):
    streamed = online[0]["streamed"]
    assert sum(streamed["n_documents"].values()) == 180
    assert streamed["revision"] == COMMITS["main"]


def test_configuration_revision_and_limits_determine_the_text(online):
    """Two names for the same text have the same fingerprint, and no others."""
    prepared, _ = online
    assert prepared["one"]["fingerprint"] == prepared["pinned"]["fingerprint"] != prepared["two"]["fingerprint"]
    assert prepared["pinned"]["revision"] == COMMITS["v1"]
    # 8 bytes per token, up to the end of a training document.
    assert 32_000 <= prepared["by tokens"]["n_bytes"]["train"] < 32_000 + max(map(len, TEXTS))
    assert sum(prepared["by tokens and documents"]["n_documents"].values()) == 190


def test_an_unknown_field_or_configuration_is_refused_with_the_known_ones(online):
    prepared, _ = online
    assert prepared["no field"]["refused"] == "text_field: owner/rows, row 0 has no field 'body'; it has text, id"
    start = "dataset_config: 'owner/configs': Config name is missing. Please pick one"
    assert prepared["no configuration"]["refused"].startswith(start)
    assert "['one', 'two']" in prepared["unknown configuration"]["refused"]


START = "is not a local path, and cannot be read from the Hugging Face hub: "
OFFLINE = (
    "; without the hub use 'python-stdlib', a folder of text files, or a .txt, .jsonl or .parquet file,"
    " or set HF_HUB_OFFLINE=1 and HF_HOME to a cache that contains it"
)


def test_a_refusal_of_the_hub_is_reported_in_one_line_with_its_reason(online):
    """The user must see whether the name, the permission or the revision is wrong; none is worth a retry."""
    prepared, requests = online
    reason = "repository not found, or private (set HF_TOKEN)"
    assert prepared["unknown"]["refused"] == f"dataset: 'owner/nothing' {START}{reason}{OFFLINE}"
    assert prepared["gated"]["refused"].startswith(f"dataset: 'owner/gated' {START}Dataset 'owner/gated' is a gated ")
    gated = "access is gated; request access on its page and set HF_TOKEN"
    assert prepared["gated tokenizer"]["refused"].startswith(f"tokenizer: 'owner/gated' {START}{gated}; without")
    assert prepared["no revision"]["refused"] == f"dataset: 'owner/rows@v2' {START}revision not found{OFFLINE}"
    refused = prepared["unknown tokenizer"]["refused"]
    assert refused.startswith(f"tokenizer: 'owner/nothing' {START}{reason}; without the hub use 'bpe'")
    assert requests.count("/api/datasets/owner/nothing") == 1
    assert requests.count("/api/datasets/owner/rows/revision/v2") == 1


def test_only_the_tokenizer_of_a_model_is_downloaded(online):
    """The weights beside it may be gigabytes."""
    prepared, requests = online
    assert prepared["tokenized"]["vocab_size"] == 257
    assert [path for path in requests if path.endswith("/tokenizer.json")]
    assert not [path for path in requests if path.endswith("model.safetensors")]


@pytest.fixture(scope="module")
def unreachable(folder, online):
    """Prepare configs while the hub drops all connections; return the results by name, and the requests."""
    configs = {
        "streamed": STREAMED,
        "dataset": {"dataset": "owner/rows", "max_documents": 5},
        "tokenizer": {"dataset": "b.txt", "tokenizer": "owner/other"},
    }
    with serve(DropConnections) as server:
        return prepare(folder, server, configs), server.requests


def test_prepared_data_is_opened_without_the_hub(online, unreachable):
    """A worker that starts while the hub is unreachable uses the cache."""
    assert unreachable[0]["streamed"]["fingerprint"] == online[0]["streamed"]["fingerprint"]


def test_an_unreachable_hub_is_refused_without_retries(unreachable):
    """The libraries themselves retry for half a minute, in each worker of a study."""
    prepared, requests = unreachable
    for name, key, repository in (("dataset", "dataset", "owner/rows"), ("tokenizer", "tokenizer", "owner/other")):
        assert prepared[name]["refused"].startswith(f"{key}: '{repository}' {START}Server disconnected")
    assert prepared["dataset"]["refused"].endswith(OFFLINE)
    assert sorted(requests) == ["/api/datasets/owner/rows", "/api/models/owner/other/revision/main"]


@pytest.fixture(scope="module")
def offline(folder, online):
    """Prepare configs in offline mode after the downloads of `online`; return the results and the requests."""
    configs = {
        "downloaded": {"dataset": "owner/downloaded", "max_documents": 150},
        "not downloaded": {"dataset": "owner/not-downloaded", "max_documents": 150},
        "tokenizer": {**TOKENIZED, "dataset": "b.txt"},
    }
    with serve(Hub) as server:
        return prepare(folder, server, configs, HF_HUB_OFFLINE="1"), server.requests


def test_offline_mode_reads_the_cache_of_the_hub(offline):
    """A cluster without internet access uses a cache that was filled on another machine."""
    prepared, requests = offline
    assert sum(prepared["downloaded"]["n_documents"].values()) == 150
    assert prepared["downloaded"]["revision"] is None
    assert prepared["tokenizer"]["vocab_size"] == 257
    assert prepared["not downloaded"]["refused"].startswith(f"dataset: 'owner/not-downloaded' {START}")
    assert not requests
