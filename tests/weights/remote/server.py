"""A server on loopback that speaks the Hub's protocol for files, and may misbehave.

Files above `LARGE` bytes are served as the Hub serves files in LFS: `resolve` redirects to another
address, and states the SHA-256 in `X-Linked-ETag`. `uploads` takes files.
"""

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

LARGE = 1_000
TOKEN = "hf_of_the_owner"
OWNER = "me"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    """Files by name, and what goes wrong with them.

    Attributes:
      files: their contents.
      commit: of all of them.
      before: the files of earlier commits, which a repository keeps.
      refusal: the `X-Error-Code` of every answer, with its status; empty: none.
      sent: what is sent in place of a file, while its hash is stated as ever.
      breaks: how often an answer with this file breaks off half way.
    """

    files: dict[str, bytes]
    commit: str = "c0ffee" + "0" * 34
    before: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refusal: tuple[int, str] | None = None
    sent: dict[str, bytes] = field(default_factory=dict)
    breaks: dict[str, int] = field(default_factory=dict)


@dataclass
class Hub:
    """Repositories, and what became of requests.

    Attributes:
      repositories: by `OWNER/REPO`.
      requests: those that came: method, path and range.
      address: of the server.
      stored: large files that were uploaded, by their SHA-256.
      faults: by the start of a path, how often sending something there goes wrong, and how: a
        status, or 0 for a connection that breaks off.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    address: str = ""
    stored: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, tuple[int, int]] = field(default_factory=dict)


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A running server."""
    hub = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_POST(self) -> None:
            self._take()

        def do_PUT(self) -> None:
            self._take()

        def log_message(self, *_: object) -> None:
            pass

        def _take(self) -> None:
            """Answers a request that sends something."""
            from tests.weights.remote import uploads

            path = unquote(self.path.partition("?")[0])
            hub.requests.append((self.command, path, ""))
            content = self.rfile.read(int(self.headers["Content-Length"]))
            part = next((part for part in hub.faults if path.startswith(part)), "")
            times, status = hub.faults.get(part, (0, 0))
            if times:
                hub.faults[part] = times - 1, status
                if not status:
                    self.close_connection = True
                    return self.connection.close()
                return self._json(status, {"error": "no space is left here"})
            authorized = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            return self._json(*uploads.answer(hub, path, content, authorized))

        def _json(self, status: int, answer: dict[str, Any]) -> None:
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _answer(self, body: bool) -> None:
            path = unquote(self.path.partition("?")[0])
            hub.requests.append((self.command, path, self.headers.get("Range", "")))
            owner, repo, *rest = path.strip("/").removeprefix("api/models/").split("/")
            where = hub.repositories.get(f"{owner}/{repo}")
            if where is None:
                return self._refuse(401, "RepoNotFound")
            if where.refusal is not None:
                return self._refuse(*where.refusal)
            if not rest or rest[0] == "revision":
                return self._json(200, {"id": f"{owner}/{repo}", "sha": where.commit})
            kind, revision, name = rest[0], rest[1], "/".join(rest[2:])
            commit = where.commit if revision == "main" else revision
            files = {**where.before, where.commit: where.files}.get(commit)
            if files is None:
                return self._refuse(404, "RevisionNotFound")
            if name not in files:
                return self._refuse(404, "EntryNotFound", commit)
            return self._file(where, kind, commit, name, files[name], body)

        def _refuse(self, status: int, code: str, commit: str = "") -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            if commit:
                self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _file(
            self, where: Repository, kind: str, commit: str, name: str, content: bytes, body: bool
        ) -> None:
            if kind == "resolve" and len(content) > LARGE:
                self.send_response(302)
                self.send_header("Location", f"{hub.address}{self.path}".replace("resolve", "cdn"))
                self.send_header("X-Linked-ETag", f'"{sha256(content)}"')
                self.send_header("X-Linked-Size", str(len(content)))
                self.send_header("X-Repo-Commit", commit)
                self.send_header("Content-Length", "0")
                return self.end_headers()
            sent = where.sent.get(name, content)
            first = int(self.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
            if first >= len(sent):
                return self._refuse(416, "")
            self.send_response(206 if "Range" in self.headers else 200)
            self.send_header("ETag", f'"{git_sha1(content)}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(sent) - first))
            if "Range" in self.headers:
                self.send_header("Content-Range", f"bytes {first}-{len(sent) - 1}/{len(sent)}")
            self.end_headers()
            if not body:
                return None
            if where.breaks.get(name, 0) > 0:
                where.breaks[name] -= 1
                self.wfile.write(sent[first : first + (len(sent) - first) // 2])
                self.close_connection = True
                return self.connection.close()
            self.wfile.write(sent[first:])
            return None

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
