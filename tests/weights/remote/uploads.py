"""The half of the Hub's protocol that takes files, in LFS where they are large."""

import base64
import json
import re
from typing import Any

import yaml

from tests.weights.remote.server import LARGE, OWNER, Hub, Repository, git_sha1, sha256

# Of those that the Hub knows.
LICENSES = ("apache-2.0", "mit", "cc-by-nc-4.0", "other")
Answer = tuple[int, dict[str, Any]]


def answer(hub: Hub, path: str, content: bytes, authorized: bool) -> Answer:
    """The status and the JSON for a request that sends something."""
    if stored := re.fullmatch("/lfs/([0-9a-f]{64})", path):  # its address is a secret by itself
        if sha256(content) != stored[1]:
            return 400, {"error": "the content is not what was announced"}
        hub.stored[stored[1]] = content
        return 200, {}
    if path == "/api/validate-yaml":
        return _card(json.loads(content)["content"])
    if not authorized:
        return 401, {"error": "Invalid username or password."}
    if path == "/api/repos/create":
        return _create(hub, json.loads(content))
    found = re.fullmatch(
        "(?:/api/models)?/([^/]+/[^/]+?)(?:.git/info/lfs/objects/(batch)|/(preupload|commit)/main)",
        path,
    )
    where = hub.repositories.get(found[1]) if found else None
    if found is None or where is None:
        return 404, {"error": "Repository not found"}
    if where.refusal is not None:
        return where.refusal[0], {"error": where.refusal[1]}
    if found[2]:
        return 200, _batch(hub, json.loads(content))
    if found[3] == "preupload":
        return 200, {"files": [_mode(where, file) for file in json.loads(content)["files"]]}
    return _commit(hub, where, f"{hub.address}/{found[1]}", content)


def _card(text: str) -> Answer:
    """Checks the fields of a model card."""
    parts = text.split("---\n")
    if len(parts) < 3 or parts[0]:
        return 200, {"warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
    fields = yaml.safe_load(parts[1])
    wrong = [name for name in ("library_name", "pipeline_tag", "license", "base_model")
             if not isinstance(fields.get(name, ""), str)]  # fmt: skip
    if fields.get("license", LICENSES[0]) not in LICENSES:
        wrong.append("license")
    if not all(isinstance(tag, str) for tag in fields.get("tags", [])):
        wrong.append("tags")
    errors = [{"message": f'"{name}" is not valid'} for name in wrong]
    return (400 if errors else 200), {"errors": errors, "warnings": []}


def _create(hub: Hub, asked: dict[str, Any]) -> Answer:
    name = f"{asked['organization']}/{asked['name']}"
    if asked["organization"] != OWNER:
        return 403, {"error": f"You don't have the rights to create a model under {name}"}
    if name in hub.repositories:
        told = {"error": "You already created this model repo"}
        return 409, {**told, "url": f"{hub.address}/{name}"}
    hub.repositories[name] = Repository({})
    return 200, {"url": f"{hub.address}/{name}"}


def _mode(where: Repository, file: dict[str, Any]) -> dict[str, Any]:
    """How a file is sent; `oid` is that of the file that the repository has."""
    has = where.files.get(file["path"])
    large = file["size"] > LARGE
    oid = None if has is None else sha256(has) if large else git_sha1(has)
    mode = "lfs" if large else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}


def _batch(hub: Hub, asked: dict[str, Any]) -> dict[str, Any]:
    """Where large files are sent to, except those that are there."""
    objects = []
    for each in asked["objects"]:
        actions = {"upload": {"href": f"{hub.address}/lfs/{each['oid']}"}}
        objects.append({**each, **({} if each["oid"] in hub.stored else {"actions": actions})})
    return {"transfer": "basic", "objects": objects}


def _commit(hub: Hub, where: Repository, address: str, content: bytes) -> Answer:
    files = dict(where.files)
    for line in content.splitlines():
        key, value = (json.loads(line)[name] for name in ("key", "value"))
        if key == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            if value["oid"] not in hub.stored:
                return 400, {"error": f"{value['path']} was not uploaded"}
            files[value["path"]] = hub.stored[value["oid"]]
        elif key != "header":
            return 400, {"error": f"{key} is not known here"}
    where.before[where.commit] = where.files
    where.files, where.commit = files, git_sha1(content)
    told = {"commitUrl": f"{address}/commit/{where.commit}", "commitOid": where.commit}
    return 200, {**told, "success": True}
