"""The hub is a server on this machine that speaks as much of its language as reading takes; no test leaves it."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

COMMITS = {"main": "a" * 40, "v1": "b" * 40}
TEXTS = [" ".join(f"w{number}x{word}" for word in range(60)) for number in range(200)]


def rows(texts, **others):
    """Write rows of a .jsonl file."""
    return "".join(json.dumps({"text": text, **others}) + "\n" for text in texts).encode()


def tokenizer_json():
    """Write a tokenizer.json of the 256 bytes."""
    alphabet = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer.to_str().encode()


CONFIGS = (
    "---\nconfigs:\n- config_name: one\n  data_files: one.jsonl\n- config_name: two\n  data_files: two.jsonl\n---\n"
)
# By kind, name and branch: what files each repository has.
REPOSITORIES = {
    ("datasets", "owner/rows", "main"): {"train.jsonl": rows(TEXTS, id=1)},
    ("datasets", "owner/rows", "v1"): {"train.jsonl": rows(TEXTS[:150])},
    ("datasets", "owner/configs", "main"): {
        "README.md": CONFIGS.encode(),
        "one.jsonl": rows(TEXTS[:150]),
        "two.jsonl": rows(TEXTS[50:]),
    },
    ("datasets", "owner/gated", "main"): {"train.jsonl": None},
    ("models", "owner/bytes", "main"): {
        "tokenizer.json": tokenizer_json(),
        "tokenizer_config.json": b'{"eos_token": "<end>"}',
        "model.safetensors": b"weights that nobody asked for",
    },
}


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does to `huggingface_hub` 2.4: what a repository is, what lies in it, and its files."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        return

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.server.asked.append(path)
        about = re.fullmatch(r"/api/(datasets|models)/(\w+/\w+)(?:/(revision|tree)/(\w+))?(?:/(\w+))?", path)
        file = re.fullmatch(r"/(?:(datasets)/)?(\w+/\w+)/resolve/(\w+)/(.+)", path)
        if about:
            kind, name, what, revision, folder = about.groups()
            self._about(self._find(kind, name, revision or "main"), name, is_tree=what == "tree", folder=folder)
        elif file:
            kind, name, revision, name_of_file = file.groups()
            self._file(self._find(kind or "models", name, revision), name_of_file)
        else:
            self._answer(404, code="EntryNotFound")

    do_HEAD = do_GET

    def _find(self, kind, name, revision):
        """Give the commit and the files of a repository; None where there is no such name, or no such revision."""
        branches = {branch: files for (k, n, branch), files in REPOSITORIES.items() if (k, n) == (kind, name)}
        if not branches:
            return None
        branch = {commit: branch for branch, commit in COMMITS.items()}.get(revision, revision)
        return (COMMITS[branch], branches[branch]) if branch in branches else ("", {})

    def _about(self, found, name, *, is_tree, folder):
        if found is None or not found[0]:
            self._answer(404, code="RepoNotFound" if found is None else "RevisionNotFound")
            return
        commit, files = found
        if is_tree:
            listed = [] if folder else files
            body = [{"type": "file", "oid": "c" * 40, "size": len(files[f] or b""), "path": f} for f in listed]
        else:
            body = {"id": name, "sha": commit, "siblings": [{"rfilename": f} for f in files], "gated": None in files}
        self._answer(200, json.dumps(body).encode(), Content_Type="application/json")

    def _file(self, found, name):
        if found is None or name not in found[1]:
            self._answer(404, code="RepoNotFound" if found is None else "EntryNotFound", X_Repo_Commit=COMMITS["main"])
            return
        commit, files = found
        content = files[name]
        if content is None:
            self._answer(403, code="GatedRepo")
            return
        about = {"ETag": f'"{hash((commit, name)):x}"', "X_Repo_Commit": commit, "Accept_Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
            about["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
            self._answer(206, content[first : last + 1], **about)
        else:
            self._answer(200, content, **about)

    def _answer(self, status, body=b"", *, code=None, **headers):
        self.send_response(status)
        for name, value in {**headers, **({"X_Error_Code": code} if code else {})}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def hub():
    """Serve the repositories; gives the server, which remembers what it was asked for."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def nobody():
    """Give the address of a port at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


# Prepares one config after another, and prints what came of each. The hub's address is read when it is imported.
PREPARE = """
import json, sys, time
from pathlib import Path
from hpopt.errors import ConfigError
from hpopt.training.config import PretrainConfig
from hpopt.training.data import prepare

for changes in json.loads(sys.argv[1]):
    started = time.monotonic()
    try:
        came = prepare(PretrainConfig(vocab_size=300, sequence_length=16, **changes), Path("cache")).meta
    except ConfigError as error:
        came = {"refused": str(error)}
    print("came", json.dumps({**came, "seconds": time.monotonic() - started}))
"""


@pytest.fixture
def reads(tmp_path):
    """Prepare configs in a process of its own, with another hub and another cache; gives what came of each."""

    def read(hub, *configs, **environment):
        address = hub if isinstance(hub, str) else f"http://127.0.0.1:{hub.server_address[1]}"
        done = subprocess.run(
            [sys.executable, "-c", PREPARE, json.dumps(configs)],
            env={
                **os.environ,
                "HF_ENDPOINT": address,
                "HF_HOME": str(tmp_path / "home"),
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "NO_PROXY": "127.0.0.1",
                **environment,
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("came ")]

    return read


def test_a_dataset_is_streamed_and_opens_again_without_the_hub(hub, nobody, reads):
    """A worker that starts while the hub is down has what the last one prepared."""
    config = {"dataset": "owner/rows", "max_documents": 180}
    (first,) = reads(hub, config)
    assert sum(first["n_documents"].values()) == 180
    assert first["revision"] == COMMITS["main"]
    (again,) = reads(nobody, config)
    assert again["fingerprint"] == first["fingerprint"]


def test_configuration_revision_and_bounds_choose_what_is_read(hub, reads):
    """Two names that read the same text have the same fingerprint, and no others."""
    configs = {"dataset": "owner/configs", "max_documents": 150}
    by_tokens = {"dataset": "owner/rows", "max_train_tokens": 4000}
    one, two, pinned, bounded, both, missing, unchosen, unfound = reads(
        hub,
        {**configs, "dataset_config": "one"},
        {**configs, "dataset_config": "two"},
        {"dataset": "owner/rows@v1", "max_documents": 1000},
        by_tokens,
        {**by_tokens, "max_documents": 190},
        {"dataset": "owner/rows", "max_documents": 5, "text_field": "body"},
        configs,
        {**configs, "dataset_config": "three"},
    )
    assert one["fingerprint"] == pinned["fingerprint"] != two["fingerprint"]
    assert pinned["revision"] == COMMITS["v1"]
    # 8 bytes a token, up to the end of a document of training.
    assert 32_000 <= bounded["n_bytes"]["train"] < 32_000 + max(map(len, TEXTS))
    assert sum(both["n_documents"].values()) == 190
    assert missing["refused"] == "text_field: owner/rows, row 0 has no field 'body'; it has text, id"
    assert unchosen["refused"].startswith("dataset_config: 'owner/configs': Config name is missing. Please pick one")
    assert "['one', 'two']" in unfound["refused"]


OFFLINE = (
    "; without the hub: 'python-stdlib', a folder of text files, a .txt, .jsonl or .parquet file,"
    " or HF_HUB_OFFLINE=1 and HF_HOME at the cache of a machine that has it"
)


def test_what_the_hub_does_not_give_away_is_refused_with_the_reason(hub, reads):
    """One line, in the words of the user: whether the name, the right to it or the revision is missing."""
    unknown, gated, no_revision, no_tokenizer = reads(
        hub,
        {"dataset": "owner/nothing", "max_documents": 5},
        {"dataset": "owner/gated", "max_documents": 5},
        {"dataset": "owner/rows@v2", "max_documents": 5},
        {"tokenizer": "owner/nothing", "dataset": "owner/rows", "max_documents": 150},
    )
    start = "is no path here, and cannot be read from the Hugging Face hub"
    reason = "no such name there, or a private one (set HF_TOKEN)"
    assert unknown["refused"] == f"dataset: 'owner/nothing' {start}: {reason}{OFFLINE}"
    assert f"dataset: 'owner/gated' {start}: " in gated["refused"]
    assert "gated" in gated["refused"]
    assert no_revision["refused"] == f"dataset: 'owner/rows@v2' {start}: it has no such revision{OFFLINE}"
    assert no_tokenizer["refused"].startswith(f"tokenizer: 'owner/nothing' {start}: {reason}; without the hub: 'bpe'")
    assert max(each["seconds"] for each in (unknown, gated, no_revision, no_tokenizer)) < 10


def test_a_hub_that_does_not_answer_is_refused_within_seconds(nobody, reads, tmp_path):
    """The libraries try again for half a minute, for each of a study's workers; nothing is left behind."""
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(TEXTS))
    dataset, tokenizer = reads(
        nobody,
        {"dataset": "owner/rows", "max_documents": 5},
        {"dataset": "a.txt", "tokenizer": "owner/bytes"},
    )
    assert dataset["refused"].startswith("dataset: 'owner/rows' is no path here, and cannot be read")
    assert dataset["refused"].endswith(OFFLINE)
    assert tokenizer["refused"].startswith("tokenizer: 'owner/bytes' is no path here, and cannot be read")
    assert "Connection refused" in dataset["refused"]
    assert "Connection refused" in tokenizer["refused"]
    assert max(dataset["seconds"], tokenizer["seconds"]) < 5


def test_the_cache_of_the_hub_is_read_where_the_hub_is_switched_off(hub, reads, tmp_path):
    """What the refusal offers to a cluster without the internet must work: the dataset loaded once, elsewhere."""
    load = "import datasets; datasets.load_dataset('owner/rows', split='train')"
    address = f"http://127.0.0.1:{hub.server_address[1]}"
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": address, "NO_PROXY": "127.0.0.1"}
    subprocess.run([sys.executable, "-c", load], env=environment, check=True, capture_output=True)
    asked = len(hub.asked)
    here, missing = reads(
        hub,
        {"dataset": "owner/rows", "max_documents": 150},
        {"dataset": "owner/configs", "max_documents": 150},
        HF_HUB_OFFLINE="1",
    )
    assert sum(here["n_documents"].values()) == 150
    assert here["revision"] is None
    assert missing["refused"].startswith("dataset: 'owner/configs' is no path here, and cannot be read")
    assert len(hub.asked) == asked


def test_a_tokenizer_is_fetched_without_the_model_and_found_again_offline(hub, reads, tmp_path):
    """Gigabytes of weights lie beside a tokenizer of a megabyte."""
    (tmp_path / "a.txt").write_text("<|endoftext|>".join(TEXTS))
    config = {"dataset": "a.txt", "tokenizer": "owner/bytes"}
    (fetched,) = reads(hub, config)
    assert fetched["vocab_size"] == 257
    assert not [path for path in hub.asked if path.endswith("model.safetensors")]
    (tmp_path / "b.txt").write_text("<|endoftext|>".join(TEXTS[:150]))
    (offline,) = reads(hub, {**config, "dataset": "b.txt"}, HF_HUB_OFFLINE="1")
    assert offline["vocab_size"] == 257
