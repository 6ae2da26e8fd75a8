"""Exports on the Hub: a server on loopback that speaks its protocol, and refuses."""

import pytest

from tests.processes import finish, result
from tests.serving.exports import write
from tests.weights.remote import server
from xception_jax import export
from xception_jax.errors import RunError, UsageError
from xception_jax.serving import upload

huggingface_hub = pytest.importorskip("huggingface_hub", reason="is not installed: '.[hub]'")

# The client's own, of the library that it sends large files with.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

LICENSE = {"name": "hf:timm/some.in1k", "license": "mit"}


@pytest.fixture
def hub(monkeypatch):
    """A server, of which the client takes what users set in its environment."""
    huggingface_hub.close_session()  # another test's, which keeps the proxies of its environment
    with server.serving() as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setenv("HF_TOKEN", server.TOKEN)
        yield hub


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_export_is_one_commit(hub, tmp_path):
    folder = write(tmp_path / "out", **LICENSE)
    hub.faults["/lfs/"] = (1, 0)  # a connection that breaks off, and is tried again
    pushed = export.push(folder, "hf:me/net")
    where = hub.repositories["me/net"]
    assert (pushed.url, pushed.commit) == (f"{hub.address}/me/net", where.commit)
    assert where.files == contents(folder)
    assert len(where.before) == 1
    for name, content in where.files.items():
        (tmp_path / "copy").mkdir(exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(content)
    assert export.check(tmp_path / "copy").files == export.check(folder).files
    # The same again changes nothing; another export is another commit.
    assert export.push(folder, "hf:me/net") == pushed
    other = write(tmp_path / "other", **LICENSE, file="other")
    again = export.push(other, "hf:me/net")
    assert again.commit != pushed.commit
    assert where.files == contents(other)
    assert where.before[pushed.commit] == contents(folder)


def break_token(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")


def break_disk(hub, monkeypatch):
    hub.faults["/api/models/me/net/commit"] = (1, 507)


def break_storage(hub, monkeypatch):
    hub.faults["/lfs/"] = (9, 507)


def break_network(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


def break_rights(hub, monkeypatch):
    hub.repositories["me/net"] = server.Repository({}, refusal=(403, "this repository is frozen"))


@pytest.mark.parametrize(
    ("wrong", "name", "told"),
    [
        (break_token, "hf:me/net", "log in with hf auth login, or set HF_TOKEN"),
        (None, "hf:you/net", "your token may not write there (You don't have the rights"),
        (break_rights, "hf:me/net", "your token may not write there (this repository is frozen)"),
        (break_disk, "hf:me/net", "the server answers 507 (no space is left here)"),
        (break_storage, "hf:me/net", "the server answers 507 (no space is left here)"),
        (break_network, "hf:me/net", "Connection refused"),
    ],
    ids=["token", "owner", "rights", "disk", "storage", "network"],
)
def test_a_refusal_is_one_line(hub, monkeypatch, tmp_path, wrong, name, told):
    folder = write(tmp_path / "out")
    before = contents(folder)
    if wrong:
        wrong(hub, monkeypatch)
    with pytest.raises(RunError) as caught:
        export.push(folder, name)
    [line] = str(caught.value).splitlines()
    assert told in line
    assert f"--check={folder} --push={name}" in line
    assert contents(folder) == before
    assert not any(where.files for where in hub.repositories.values())


def test_a_card_that_the_hub_does_not_accept(hub, tmp_path):
    folder = write(tmp_path / "out", license="unheard-of")
    with pytest.raises(RunError, match=r'Invalid metadata in README\.md\. - "license"'):
        export.push(folder, "hf:me/net")
    assert hub.repositories["me/net"].files == {}


@pytest.mark.parametrize(
    "name", ["me/net", "hf:net", "hf:me/net/file", "hf:me/net@main", "hf:me/a--b", "hf:me/a b"]
)
def test_what_is_no_repository(name):
    with pytest.raises(UsageError, match=f"--push={name}"):
        upload.repository_of(name)


@pytest.mark.parametrize("name", ["model.bin", "model.json", "README.md", "classify.py"])
def test_a_damaged_export_is_not_pushed(hub, tmp_path, name):
    folder = write(tmp_path / "out")
    (folder / name).write_bytes((folder / name).read_bytes()[:-2])
    with pytest.raises(RunError, match=f"{name} is damaged"):
        export.push(folder, "hf:me/net")
    assert hub.requests == []


def test_the_command_pushes_what_it_wrote(undisturbed, hub, tmp_path):
    """At first with a token that the Hub does not know; then the export of the first time."""
    own = {
        "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    folder, push = tmp_path / "out", "--push=hf:me/digits"
    flags = f"--workdir={undisturbed}", f"--output={folder}", "--platforms=cpu", push, "--json"
    refused = finish("export", *flags, env={**own, "HF_TOKEN": "hf_of_somebody"})
    assert refused.returncode == 1
    [line] = refused.stderr.splitlines()
    assert f"--check={folder} {push}" in line
    assert hub.repositories == {}
    env = {**own, "HF_TOKEN": server.TOKEN}
    found = result(finish("export", f"--check={folder}", push, "--json", env=env))
    where = hub.repositories["me/digits"]
    assert found["pushed"] == {"url": f"{hub.address}/me/digits", "commit": where.commit}
    assert where.files == contents(folder)
