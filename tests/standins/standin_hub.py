"""A stand-in for the Hugging Face Hub in this process: models and datasets, small and LFS files, trees, downloads."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

TOKEN = "hf_" + "standin" * 4
LFS_SUFFIXES = (".safetensors", ".png", ".nii.gz", ".parquet")
API = re.compile(r"/api/(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+)(?P<rest>/.*)?")
RESOLVE = re.compile(r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/[^/]+/(?P<file>.+)")


@dataclass
class Repo:
    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{}])

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]

    @property
    def sha(self) -> str:
        return f"{len(self.commits):040x}"


@dataclass
class Hub:
    """What the stand-in remembers; datasets are named ``datasets/user/name``."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    downloads: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    fail_uploads: bool = False
    break_after: int | None = None
    fail_downloads: int = 0


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _entry(path: str, content: bytes) -> dict[str, object]:
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": oid}
    if path.endswith(LFS_SUFFIXES):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry


def _tree(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, object]]:
    prefix = f"{folder}/" if folder else ""
    below = {path: content for path, content in files.items() if path.startswith(prefix)}
    parts = {path: path.removeprefix(prefix).split("/") for path in below}
    folders = {
        prefix + "/".join(names[:depth])
        for names in parts.values()
        for depth in range(1, len(names) if recursive else min(2, len(names)))
    }
    shown = [_entry(path, below[path]) for path in below if recursive or len(parts[path]) == 1]
    return [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)] + shown


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    one_upload = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, content: bytes | object, status: int = 200, **headers: str) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def repo(self, kind: str, name: str) -> Repo | None:
            """The repository, if there is one and the caller may see it."""
            found = hub.repos.get(f"datasets/{name}" if kind.startswith("dataset") else name)
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            return found if found is not None and (known or not found.private) else None

        def do_POST(self) -> None:
            path, body = unquote(urlparse(self.path).path), self.body()
            found = API.fullmatch(path)
            if found and (found["rest"] or "").startswith("/paths-info/"):
                return self.paths_info(found, body)
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer({"error": "Invalid username or password."}, 401)
            if path == "/api/repos/create":
                return self.create(json.loads(body))
            if path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            if path.endswith(".git/info/lfs/objects/batch"):
                return self.batch(json.loads(body))
            if found and found["rest"].startswith("/preupload/"):
                modes = [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(body)["files"]
                ]
                return self.answer({"files": modes})
            if found and found["rest"].startswith("/commit/"):
                return self.commit(found, body)
            return self.answer({"error": f"no {path}"}, 404)

        def create(self, wanted: dict[str, object]) -> None:
            name = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
            key = f"datasets/{name}" if wanted.get("type") == "dataset" else name
            if key in hub.repos:
                return self.answer({"url": f"{hub.url}/{key}"}, 409)
            hub.repos[key] = Repo(private="private" in (wanted.get("visibility"), wanted.get("private") and "private"))
            return self.answer({"url": f"{hub.url}/{key}", "name": name})

        def batch(self, wanted: dict[str, list[dict[str, object]]]) -> None:
            objects = [
                one
                | (
                    {}
                    if one["oid"] in hub.objects
                    else {"actions": {"upload": {"href": f"{hub.url}/lfs/{one['oid']}"}}}
                )
                for one in wanted["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})

        def commit(self, found: re.Match[str], body: bytes) -> None:
            repo = self.repo(found["kind"], found["name"])
            assert repo is not None
            files = dict(repo.files)
            for entry in map(json.loads, body.splitlines()):
                value = entry["value"]
                if entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
                elif entry["key"] == "deletedFile":
                    files.pop(value["path"])
            repo.commits.append(files)
            url = f"{hub.url}/{found['name']}/commit/{repo.sha}"
            return self.answer({"commitUrl": url, "commitOid": repo.sha, "success": True})

        def paths_info(self, found: re.Match[str], body: bytes) -> None:
            repo = self.repo(found["kind"], found["name"])
            if repo is None:
                return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            wanted = re.findall(r'paths=([^&]+)|"paths": ?\[(.*?)\]', body.decode())
            names = [unquote(one) for one, _ in wanted if one] or json.loads(f"[{wanted[0][1]}]")
            return self.answer([_entry(name, repo.files[name]) for name in names if name in repo.files])

        def do_PUT(self) -> None:
            # One upload after the other: a client that sends two at once must not have both counted as the first.
            with one_upload:
                self.put()

        def put(self) -> None:
            if hub.break_after is not None and len(hub.objects) >= hub.break_after:
                self.rfile.read(100)
                self.connection.close()
                return None
            content = self.body()
            oid = self.path.rsplit("/", 1)[1]
            hub.uploads.append(oid)
            if hub.fail_uploads or hashlib.sha256(content).hexdigest() != oid:
                return self.answer({"error": "interrupted"}, 400)
            hub.objects[oid] = content
            return self.answer(b"")

        def do_GET(self) -> None:
            address = urlparse(self.path)
            path = unquote(address.path)
            found = RESOLVE.fullmatch(path) or API.fullmatch(path)
            if found is None:
                return self.answer({"error": f"no {path}"}, 404)
            repo = self.repo(found["kind"] or "model", found["name"])
            if repo is None:
                return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            if "file" in found.groupdict():
                return self.resolve(repo, found["file"])
            rest = found["rest"] or ""
            if tree := re.fullmatch(r"/tree/[^/]+/?(.*)", rest):
                wanted = _tree(repo.files, tree[1], "recursive=true" in address.query.lower())
                if tree[1] and not wanted:
                    return self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
                return self.answer(wanted)
            if rest and not rest.startswith("/revision/"):
                return self.answer({"error": f"no {path}"}, 404)
            siblings = [{"rfilename": name} for name in repo.files]
            return self.answer({"id": found["name"], "sha": repo.sha, "private": repo.private, "siblings": siblings})

        def resolve(self, repo: Repo, name: str) -> None:
            content = repo.files.get(name)
            if content is None:
                return self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
            if self.command == "GET" and hub.fail_downloads > 0:
                hub.fail_downloads -= 1
                return self.answer({"error": "busy"}, 503)
            if self.command == "GET":
                hub.downloads.append(name)
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            facts = {"X_Repo_Commit": repo.sha, "ETag": etag, "X_Linked_Size": str(len(content)), "X_Linked_Etag": etag}
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if wanted and self.command == "GET":
                first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
                part = content[first : last + 1]
                span = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
                return self.answer(part, 206, Content_Range=span, **facts)
            return self.answer(content, **facts)

        do_HEAD = do_GET

    return Handler
