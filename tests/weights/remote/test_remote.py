"""Weights by name, from a server on loopback that speaks the Hub's protocol, and misbehaves."""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import ROOT
from tests.weights.remote import server
from tests.weights.remote.server import Hub, Repository, sha256
from xception_jax.errors import UsageError
from xception_jax.utils import paths
from xception_jax.utils.text import without_secrets
from xception_jax.weights import remote

pytest.importorskip("huggingface_hub", reason="is not installed: '.[hub]'")

WEIGHTS = bytes(range(256)) * 400
CARD = b"---\nlicense: apache-2.0\n---\n# A model\n"
TIMM = {"config.json": b'{"architecture": "xception65"}', "model.safetensors": WEIGHTS,
        "README.md": CARD}  # fmt: skip


@pytest.fixture
def hub() -> Iterator[Hub]:
    with server.serving() as hub:
        yield hub


# The client reads its environment when it is imported, so each try is a process.
ASK = """
import json, sys
from xception_jax.errors import RunError, UsageError
from xception_jax.weights import remote
for name in sys.argv[1:]:
    try:
        found = remote.download(name)
        print(json.dumps({"path": str(found.path), "told": found.summary(), **found.source}))
    except (RunError, UsageError) as error:
        print(json.dumps({"error": type(error).__name__, "told": str(error)}))
"""


def ask(
    hub: Hub, folder: Path, *names: str, code: str = ASK, **environment: str
) -> list[dict[str, str]]:
    """What `download` says of each name, one after the other in a process of its own."""
    own = {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(folder / "hf"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code, *names],
        env={**os.environ, **own, **environment},
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # an error is one line, which the caller tells
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(names)
    assert all("\n" not in answer["told"] for answer in answers)
    return answers


def kept(folder: Path) -> list[str]:
    """The files of the caches that hold content: not locks, links, tags or notes of absence."""
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.stat().st_size
        and "refs" not in path.parts and ".tag" not in path.name.lower() and path.suffix != ".lock"
    ]  # fmt: skip


def test_a_repository_of_timm(hub, tmp_path):
    hub.repositories["timm/xception65.ra3_in1k"] = Repository(TIMM)
    [found] = ask(hub, tmp_path, "hf:timm/xception65.ra3_in1k")
    path = Path(found["path"])
    assert path.read_bytes() == WEIGHTS
    assert path.with_name("config.json").read_bytes() == TIMM["config.json"]
    assert found["license"] == "apache-2.0"
    assert found["revision"] == Repository({}).commit
    assert found["sha256"] == sha256(WEIGHTS)
    assert found["url"] == f"{hub.address}/timm/xception65.ra3_in1k"
    assert "apache-2.0" in found["told"]
    # The same again without a network; and a commit is a name of its own.
    hub.repositories.clear()
    names = ["hf:timm/xception65.ra3_in1k", f"hf:timm/xception65.ra3_in1k@{found['revision']}"]
    again = ask(hub, tmp_path, *names, HF_HUB_OFFLINE="1")
    assert [answer["path"] for answer in again] == [found["path"]] * 2
    assert again[0] == found


def test_files_and_branches_by_name(hub, tmp_path):
    """`FILE` and `@REVISION`; a repository that moves on gives the new file, a commit the old."""
    old = Repository({"nets/a.bin": WEIGHTS})
    hub.repositories["me/nets"] = old
    [first] = ask(hub, tmp_path, "hf:me/nets/nets/a.bin@main")
    assert Path(first["path"]).read_bytes() == WEIGHTS
    assert "license" not in first
    hub.repositories["me/nets"] = Repository(
        {"nets/a.bin": WEIGHTS[::-1]}, commit="d" * 40, before={old.commit: old.files}
    )
    new, pinned = ask(hub, tmp_path, "hf:me/nets/nets/a.bin", f"hf:me/nets/nets/a.bin@{old.commit}")
    assert Path(new["path"]).read_bytes() == WEIGHTS[::-1]
    assert new["revision"] == "d" * 40
    assert pinned["sha256"] == first["sha256"]


def test_a_repository_of_keras_is_packed(hub, tmp_path):
    """As `keras.Model.save("hf://...")` lays it out; the packed file is the same each time."""
    files = {"config.json": b"{}", "metadata.json": b"{}", "model.weights.h5": WEIGHTS}
    hub.repositories["me/keras"] = Repository(files)
    [first], [second] = (ask(hub, tmp_path, "hf:me/keras") for _ in range(2))
    assert first == second
    with zipfile.ZipFile(first["path"]) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == files


PIN = """
import json, sys
from xception_jax.weights import remote
print(json.dumps({"told": remote.pinned(sys.argv[1])}))
"""


def test_a_pinned_name_stands_for_the_same_weights_when_the_branch_moves(hub, tmp_path):
    old = Repository(TIMM)
    for name, first in (("hf:me/net", TIMM), ("hf:me/net@main", TIMM)):
        hub.repositories["me/net"] = old
        [pinned] = ask(hub, tmp_path, name, code=PIN)
        assert pinned["told"] == f"hf:me/net@{old.commit}"
        moved = first | {"model.safetensors": WEIGHTS[::-1]}
        hub.repositories["me/net"] = Repository(
            moved, commit="d" * 40, before={old.commit: old.files}
        )
        [found] = ask(hub, tmp_path / "other", pinned["told"])
        assert Path(found["path"]).read_bytes() == WEIGHTS
    [address] = ask(hub, tmp_path, pinned["told"], code=PIN)
    assert address == pinned


AGAIN = """
import json, pathlib, sys
from xception_jax.weights import remote
for number, name in enumerate(sys.argv[1:]):
    if number == 2:
        path.resolve().write_bytes(b"damaged")
    path = remote.download(name).path
    print(json.dumps({"told": path.read_bytes().hex()}))
"""


def test_a_process_asks_once_for_a_name_unless_its_file_changes(hub, tmp_path):
    """A run opens its weights several times: for their images, their model and their tensors."""
    hub.repositories["me/net"] = Repository(TIMM)
    requests = []
    for times in (1, 2, 3):
        hub.requests.clear()
        answers = ask(hub, tmp_path / str(times), *["hf:me/net"] * times, code=AGAIN)
        assert [answer["told"] for answer in answers] == [WEIGHTS.hex()] * times
        requests.append(len(hub.requests))
    assert requests[0] == requests[1] < requests[2]


@pytest.mark.parametrize("damage", ["a bit", "truncated", "another member"])
def test_a_packed_file_that_is_damaged_is_made_again(hub, tmp_path, damage):
    files = {"config.json": b"{}", "metadata.json": b"{}", "model.weights.h5": WEIGHTS}
    hub.repositories["me/keras"] = Repository(files)
    [first] = ask(hub, tmp_path, "hf:me/keras")
    path = Path(first["path"])
    whole = path.read_bytes()
    if damage == "another member":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("more.json", "{}")
    else:
        middle = len(whole) // 2
        end = bytes([whole[middle] ^ 1]) + whole[middle + 1 :] if damage == "a bit" else b""
        path.write_bytes(whole[:middle] + end)
    [again] = ask(hub, tmp_path, "hf:me/keras", HF_HUB_OFFLINE="1")
    assert again == first
    assert path.read_bytes() == whole


def test_a_broken_connection_is_resumed(hub, tmp_path):
    """At the last whole chunk, of which the client writes 10 MiB at a time."""
    content = WEIGHTS * 240
    hub.repositories["me/net"] = Repository(
        TIMM | {"model.safetensors": content}, breaks={"model.safetensors": 1}
    )
    [found] = ask(hub, tmp_path, "hf:me/net")
    assert found["sha256"] == sha256(content)
    assert Path(found["path"]).stat().st_size == len(content)
    ranges = [asked for method, path, asked in hub.requests
              if method == "GET" and path.endswith("model.safetensors")]  # fmt: skip
    assert ranges == ["", f"bytes={10 << 20}-"]


@pytest.mark.parametrize("kind", ["tampered", "truncated"])
def test_another_content_is_not_taken(hub, tmp_path, kind):
    sent = WEIGHTS[:-1] + b"x" if kind == "tampered" else WEIGHTS[: len(WEIGHTS) // 2]
    where = Repository(TIMM, sent={"model.safetensors": sent})
    hub.repositories["me/net"] = where
    [refused] = ask(hub, tmp_path, "hf:me/net")
    assert refused["error"] == "RunError"
    assert "model.safetensors" in refused["told"]
    assert not [name for name in kept(tmp_path) if "blobs" in name and sha256(WEIGHTS) in name]
    where.sent.clear()
    [found] = ask(hub, tmp_path, "hf:me/net")
    assert Path(found["path"]).read_bytes() == WEIGHTS


def test_damage_in_the_cache_is_found_and_repaired(hub, tmp_path):
    hub.repositories["me/net"] = Repository(TIMM)
    [found] = ask(hub, tmp_path, "hf:me/net")
    blob = Path(found["path"]).resolve()
    blob.write_bytes(WEIGHTS[:-1] + b"x")
    [refused] = ask(hub, tmp_path, "hf:me/net", HF_HUB_OFFLINE="1")
    assert refused["error"] == "RunError"
    assert "damaged" in refused["told"]
    [again] = ask(hub, tmp_path, "hf:me/net")
    assert again == found
    assert blob.read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        ((403, "GatedRepo"), "is gated: accept its terms"),
        ((401, "RepoNotFound"), "there is no"),
        ((404, "RevisionNotFound"), "has no revision"),
        pytest.param((500, ""), "answers 500", marks=pytest.mark.slow),  # the client tries again
    ],
    ids=lambda value: str(value[0]) if isinstance(value, tuple) else "",
)
def test_refusals_are_one_line(hub, tmp_path, refusal, told):
    hub.repositories["me/net"] = Repository(TIMM, refusal=refusal)
    [refused] = ask(hub, tmp_path, "hf:me/net@main")
    assert refused["error"] == "RunError"
    assert told in refused["told"]
    assert kept(tmp_path) == []


def test_what_a_repository_lacks(hub, tmp_path):
    hub.repositories["me/empty"] = Repository({"README.md": CARD})
    layout, file, nobody = ask(hub, tmp_path, "hf:me/empty", "hf:me/empty/a.bin", "hf:me/none")
    assert "neither timm's layout" in layout["told"]
    assert "has no file a.bin" in file["told"]
    assert "there is no" in nobody["told"]


@pytest.mark.slow  # the client tries again
def test_no_network(hub, tmp_path):
    """Nothing listens there; what other machines have left in the cache is used."""
    hub.repositories["me/net"] = Repository(TIMM)
    [found] = ask(hub, tmp_path, "hf:me/net")
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    again, other = ask(hub, tmp_path, "hf:me/net", "hf:me/other", **nowhere)
    assert again["path"] == found["path"]
    assert other["error"] == "RunError"
    assert "cannot be reached" in other["told"]


def test_an_address_with_its_hash(hub, tmp_path):
    hub.repositories["some/where"] = Repository({"net.pth": WEIGHTS}, breaks={"net.pth": 1})
    url = f"{hub.address}/some/where/cdn/main/net.pth"
    name = f"{url}#sha256={sha256(WEIGHTS)}"
    first, second, wrong = ask(hub, tmp_path, name, name, f"{url}#sha256={'0' * 64}")
    assert Path(first["path"]).read_bytes() == WEIGHTS
    assert first == second
    assert wrong["error"] == "RunError"
    assert "is not the expected file" in wrong["told"]
    assert [name for name in kept(tmp_path) if "0" * 64 in name] == []
    # From the cache, without a network; damage there is found, and downloaded again.
    [offline] = ask(hub, tmp_path, name, HF_HUB_OFFLINE="1")
    assert offline == first
    Path(first["path"]).write_bytes(WEIGHTS[::-1])
    [again] = ask(hub, tmp_path, name)
    assert again == first
    assert Path(first["path"]).read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("left", "asked"),
    [
        (WEIGHTS[:1000], ["bytes=1000-"]),
        (WEIGHTS, []),  # killed before it got its name
        (b"another" * 100, ["bytes=700-", ""]),
        (WEIGHTS + b"more", [f"bytes={len(WEIGHTS) + 4}-", ""]),  # refused: 416
    ],
    ids=["a first part", "all", "of another file", "too long"],
)
def test_what_an_earlier_process_left_of_an_address(hub, tmp_path, left, asked):
    hub.repositories["some/where"] = Repository({"net.pth": WEIGHTS})
    name = f"{hub.address}/some/where/cdn/main/net.pth#sha256={sha256(WEIGHTS)}"
    part = tmp_path / "cache/xception_jax/weights" / sha256(WEIGHTS) / "net.pth.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(left)
    [found] = ask(hub, tmp_path, name)
    assert Path(found["path"]).read_bytes() == WEIGHTS
    assert [ranges for method, _, ranges in hub.requests if method == "GET"] == asked
    assert not part.exists()


def test_a_file_comes_with_the_description_in_its_folder(hub, tmp_path):
    """Whether the repository was asked for before does not matter."""
    files = {"nets/a.safetensors": WEIGHTS, "nets/config.json": b"{}", "config.json": b"[]"}
    hub.repositories["me/nets"] = Repository(files)
    [found] = ask(hub, tmp_path, "hf:me/nets/nets/a.safetensors")
    assert Path(found["path"]).with_name("config.json").read_bytes() == b"{}"


def test_secrets_of_an_address_are_not_told(hub, tmp_path):
    hub.repositories["some/where"] = Repository({"net.pth": WEIGHTS})
    url = f"{hub.address}/some/where/cdn/main/net.pth"
    names = [f"{address}?token=hidden#sha256={sha256(WEIGHTS)}" for address in (url, f"{url}x")]
    found, refused = ask(hub, tmp_path, *names)
    assert "hidden" not in str(found) + str(refused)
    assert found["url"] == url
    assert "404" in refused["told"]


def test_secrets_of_the_hubs_own_address_are_not_told(hub, tmp_path):
    hub.repositories["me/net"] = Repository(TIMM)
    address = hub.address.replace("://", "://me:hidden@")
    found, *refused = ask(
        hub, tmp_path, "hf:me/net", "hf:me/none", "hf:me/net/a.bin", HF_ENDPOINT=address
    )
    assert found["url"] == f"{hub.address}/me/net"
    assert "hidden" not in str([found, *refused])
    assert all(f"{hub.address}/me" in answer["told"] for answer in refused)


def test_text_without_secrets():
    for text, shown in (
        ("https://me:se@cret@h.org:8/a@b/c?token=x#sha256=0", "https://h.org:8/a@b/c#sha256=0"),
        ("cannot reach http://me@h/x?a=b: refused", "cannot reach http://h/x refused"),
        ("hf:me/net@main", "hf:me/net@main"),
        ("runs/a?b@c", "runs/a?b@c"),
    ):
        assert without_secrets(text) == shown


def test_an_address_without_its_hash_is_told_without_its_secrets():
    with pytest.raises(UsageError, match="needs the SHA-256") as refused:
        remote.download("https://me:hidden@example.org/net.pth?token=hidden")
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("hf:xception", "expected is hf:OWNER/REPO"),
        ("hf:../../etc/passwd", "expected is hf:OWNER/REPO"),
        ("hf:a/b/../../../c", "names no weights"),
        ("keras:resnet", "there are: keras:xception"),
        ("https://example.org/net.pth", "needs the SHA-256"),
        ("https://example.org/net.pth#sha256=123", "needs the SHA-256"),
        (f"https://me:secret@example.org/net.pth#sha256={'0' * 64}", "may not contain"),
        (f"http://[::1/net.pth#sha256={'0' * 64}", "is no address"),
        (f"http://example.org:x/net.pth#sha256={'0' * 64}", "is no address"),
        (f"https://example.org/..#sha256={'0' * 64}", "is no address of a file"),
        (f"https://example.org/%2e%2e#sha256={'0' * 64}", "is no address of a file"),
        (f"https://example.org/a%00.pth#sha256={'0' * 64}", "is no address of a file"),
        (f"https://example.org/a%2fb.pth#sha256={'0' * 64}", "is no address of a file"),
        (f"https://exam\nple.org/b.pth#sha256={'0' * 64}", "is no address of a file"),
    ],
)
def test_names_of_another_form(name, told):
    assert paths.is_weights_name(name)
    with pytest.raises(UsageError, match=told) as refused:
        remote.download(name)
    assert "\n" not in str(refused.value)


def test_a_disk_that_takes_no_more(hub, tmp_path):
    """A limit on the size of files stands for a full disk: each write beyond it fails."""
    hub.repositories["me/net"] = Repository(TIMM)
    url = f"{hub.address}/me/net/cdn/main/model.safetensors"
    limit = ("import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
             f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(WEIGHTS) // 2},) * 2)")  # fmt: skip
    names = ["hf:me/net", f"{url}#sha256={sha256(WEIGHTS)}"]
    for refused in ask(hub, tmp_path, *names, code=limit + ASK):
        assert refused["error"] == "RunError"
        assert "File too large" in refused["told"]
    assert not [path for path in kept(tmp_path) if path.endswith(("safetensors", sha256(WEIGHTS)))]
