"""A stand-in for the Hugging Face Hub in this process, for the real client.

Models and datasets, small files and LFS (whole, or in parts), trees, tags, ranges, gates, tokens, broken connections.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

from standin_repos import LFS_SUFFIXES, Hub, Repo, entry_of, oid_of, tree_of

__all__ = ["READ_TOKEN", "TOKEN", "Hub", "Repo", "serving"]

TOKEN = "hf_" + "standin" * 4
READ_TOKEN = "hf_" + "reading" * 4
"""Of somebody who may see what TOKEN sees, and write nothing."""

INVALID = "Invalid credentials in Authorization header"
API = re.compile(r"/api/(?P<kind>model|dataset)s/(?P<name>[^/]+/[^/]+)(?P<rest>/.*)?")
RESOLVE = re.compile(r"/(?P<kind>datasets/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
PART = re.compile(r"/part/(?P<upload>[0-9a-f]+-\d+)/(?P<number>\d+)")


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

        def send_file(self, content: bytes, status: int, **headers: str) -> None:
            """Answer with a file, or with as much of it as goes before the connection is cut."""
            left = len(content) if hub.break_download_after is None else hub.break_download_after - hub.sent
            if self.command == "HEAD" or left >= len(content):
                hub.sent += len(content) if self.command != "HEAD" else 0
                return self.answer(content, status, **headers)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(content[:left])
            self.wfile.flush()
            hub.sent += max(left, 0)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return None

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
            return found if found is not None and (self.is_known() or not found.private) else None

        def is_known(self, *tokens: str) -> bool:
            return self.headers.get("Authorization") in [f"Bearer {one}" for one in tokens or (TOKEN, READ_TOKEN)]

        def is_stranger(self) -> bool:
            """Whether the caller shows a token that nobody was given, which the Hub refuses whatever is asked."""
            if "Authorization" not in self.headers or self.is_known():
                return False
            self.answer({"error": "Invalid username or password."}, 401, X_Error_Message=INVALID)
            return True

        def may_write(self) -> bool:
            if self.is_known(TOKEN):
                return True
            if self.is_known(READ_TOKEN):
                self.answer({"error": "no write access"}, 403, X_Error_Message="Your token has no write access")
            else:
                self.answer({"error": "Invalid username or password."}, 401)
            return False

        def no_repo(self) -> None:
            self.answer({"error": "Repository not found"}, 404 if self.is_known() else 401, X_Error_Code="RepoNotFound")

        def do_POST(self) -> None:
            path, body = unquote(urlparse(self.path).path), self.body()
            while hub.silent.is_set():
                time.sleep(0.05)
            found = API.fullmatch(path)
            if path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            if path.startswith("/complete/"):
                return self.complete(path.removeprefix("/complete/"), json.loads(body))
            if self.is_stranger():
                return None
            if found and (found["rest"] or "").startswith("/paths-info/"):
                return self.paths_info(found, body)
            if not self.may_write():
                return None
            if found and (found["rest"] or "").startswith("/tag/"):
                return self.tag(found, json.loads(body)["tag"])
            if path == "/api/repos/create":
                return self.create(json.loads(body))
            if path.endswith(".git/info/lfs/objects/batch"):
                return self.batch(json.loads(body))
            if found and found["rest"].startswith("/preupload/"):
                repo = self.repo(found["kind"], found["name"])
                there = {} if repo is None else {path: entry_of(path, one) for path, one in repo.files.items()}
                modes = [
                    {
                        **oid_of(there.get(file["path"], {})),
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
                    else {"actions": {"upload": self.place(str(one["oid"]), int(str(one["size"])))}}
                )
                for one in wanted["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})

        def place(self, oid: str, size: int) -> dict[str, object]:
            """Where an object goes: as a whole, or in parts, whose addresses are new each time that one asks."""
            if hub.part_bytes is None or size <= hub.part_bytes:
                return {"href": f"{hub.url}/lfs/{oid}"}
            upload = f"{oid}-{len(hub.parts)}"
            hub.parts[upload] = {}
            count = -(-size // hub.part_bytes)
            parts = {f"{number:05d}": f"{hub.url}/part/{upload}/{number}?X-Amz-Signature=x" for number in
                     range(1, count + 1)}  # fmt: skip
            header = {"chunk_size": str(hub.part_bytes), **parts}
            return {"href": f"{hub.url}/complete/{upload}", "header": header}

        def complete(self, upload: str, told: dict[str, object]) -> None:
            """Make an object of its parts, as the store does: in the order that is told, each known by its tag."""
            parts, order = hub.parts.get(upload, {}), told["parts"]
            assert isinstance(order, list)
            tags = [one["etag"] == f'"{hashlib.md5(parts.get(one["partNumber"], b"")).hexdigest()}"' for one in order]
            content = b"".join(parts.get(one["partNumber"], b"") for one in order)
            if not all(tags) or hashlib.sha256(content).hexdigest() != told["oid"]:
                return self.answer({"error": "parts do not fit"}, 400)
            hub.objects[str(told["oid"])] = content
            return self.answer({})

        def tag(self, found: re.Match[str], tag: str) -> None:
            repo = self.repo(found["kind"], found["name"])
            number = repo and repo.at(found["rest"].removeprefix("/tag/"))
            if repo is None or number is None:
                return self.answer({"error": "no revision"}, 404, X_Error_Code="RevisionNotFound")
            if tag in repo.tags:
                return self.answer({"error": "Reference already exists"}, 409)
            repo.tags[tag] = number
            return self.answer({})

        def do_DELETE(self) -> None:
            found = API.fullmatch(unquote(urlparse(self.path).path))
            self.body()
            repo = found and self.repo(found["kind"], found["name"])
            if not self.may_write():
                return None
            if not found or not repo or repo.tags.pop(found["rest"].removeprefix("/tag/"), None) is None:
                return self.answer({"error": "no such tag"}, 404, X_Error_Code="RevisionNotFound")
            return self.answer({})

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
                return self.no_repo()
            wanted = re.findall(r'paths=([^&]+)|"paths": ?\[(.*?)\]', body.decode())
            names = [unquote(one) for one, _ in wanted if one] or json.loads(f"[{wanted[0][1]}]")
            return self.answer([entry_of(name, repo.files[name]) for name in names if name in repo.files])

        def do_PUT(self) -> None:
            # One upload after the other: a client that sends two at once must not have both counted as the first.
            with one_upload:
                self.put()

        def put(self) -> None:
            if hub.break_after is not None and len(hub.objects) >= hub.break_after:
                self.rfile.read(100)
                self.connection.close()
                return None
            part = PART.match(self.path)
            if part is not None and (hub.forgets_parts or part["upload"] not in hub.parts):
                self.body()
                return self.answer({"error": "Request has expired"}, 403)
            coming = int(self.headers.get("Content-Length", 0))
            if hub.break_upload_after is not None and hub.received + coming > hub.break_upload_after:
                self.rfile.read(min(coming, 1000))
                self.connection.close()
                return None
            content = self.body()
            hub.received += len(content)
            if part is not None:
                hub.parts[part["upload"]][int(part["number"])] = content
                return self.answer(b"", ETag=f'"{hashlib.md5(content).hexdigest()}"')
            oid = self.path.rsplit("/", 1)[1]
            hub.uploads.append(oid)
            if hub.fail_uploads or hashlib.sha256(content).hexdigest() != oid:
                return self.answer({"error": "interrupted"}, 400)
            hub.objects[oid] = content
            return self.answer(b"")

        def do_GET(self) -> None:
            if self.is_stranger():
                return None
            address = urlparse(self.path)
            path = unquote(address.path)
            found = RESOLVE.fullmatch(path) or API.fullmatch(path)
            if found is None:
                return self.answer({"error": f"no {path}"}, 404)
            repo = self.repo(found["kind"] or "model", found["name"])
            if repo is None:
                return self.no_repo()
            rest = found.groupdict().get("rest") or ""
            if rest == "/refs":
                tags = [
                    {"name": name, "ref": f"refs/tags/{name}", "targetCommit": f"{number:040x}"}
                    for name, number in repo.tags.items()
                ]
                main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.sha}
                return self.answer({"branches": [main], "converts": [], "tags": tags, "pullRequests": []})
            tree = re.fullmatch(r"/tree/([^/]+)/?(.*)", rest)
            revision = found.groupdict().get("revision") or (tree[1] if tree else rest.removeprefix("/revision/"))
            number = repo.at(revision or "main")
            if number is None:
                return self.answer({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
            files, sha = repo.commits[number - 1], f"{number:040x}"
            if "file" in found.groupdict():
                if repo.gated and not (self.is_known() and repo.admitted):
                    return self.answer({"error": "gated"}, 403 if self.is_known() else 401, X_Error_Code="GatedRepo")
                return self.resolve(files, sha, found["file"])
            if tree:
                wanted = tree_of(files, tree[2], "recursive=true" in address.query.lower())
                if tree[2] and not wanted:
                    return self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
                return self.answer(wanted)
            if rest and not rest.startswith("/revision/"):
                return self.answer({"error": f"no {path}"}, 404)
            siblings = [{"rfilename": name} for name in files]
            return self.answer({"id": found["name"], "sha": sha, "private": repo.private, "siblings": siblings})

        def resolve(self, files: dict[str, bytes], sha: str, name: str) -> None:
            content = files.get(name)
            if content is None:
                return self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
            if self.command == "GET" and hub.fail_downloads > 0:
                hub.fail_downloads -= 1
                return self.answer({"error": "busy"}, 503)
            if self.command == "GET":
                hub.downloads.append(name)
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            facts = {"X_Repo_Commit": sha, "ETag": etag, "X_Linked_Size": str(len(content)), "X_Linked_Etag": etag}
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if wanted and self.command == "GET":
                first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
                part = content[first : last + 1]
                span = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
                return self.send_file(part, 206, Content_Range=span, **facts)
            return self.send_file(content, 200, **facts)

        do_HEAD = do_GET

    return Handler
