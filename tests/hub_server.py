"""A stand-in for the Hugging Face hub: what huggingface_hub asks of it to make a repository, commit files and read them back."""

import base64
import hashlib
import json
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LFS_FROM = 1000  # bytes; the real hub goes by kind and by 10 MB


class Hub:
    """Repositories as lists of commits, large files by their SHA-256.

    ``delay`` (s) comes before each upload. With ``full_at`` uploads no more are taken; who sends one has no answer until
    ``emptied`` is set, and a refusal then.
    """

    def __init__(self, token: str = "hf_SECRET"):
        self.token, self.delay, self.failing = token, 0.0, 0
        self.full_at: int | None = None
        self.emptied, self._taking = threading.Event(), threading.Lock()
        self.repositories: dict[str, list[dict[str, bytes]]] = {}  # the files after each commit
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.unknown: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do(self):
                self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, content, headers = hub.answer(self)
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                headers.setdefault("Content-Length", str(len(content)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_POST = do_PUT = do

            def log_message(self, *_):
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                """A client that was killed."""

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def files(self, repository: str) -> dict[str, bytes]:
        """What lies in a repository now."""
        return self.repositories[repository][-1]

    def answer(self, request) -> tuple[int, object, dict[str, str]]:
        path = urllib.parse.unquote(urllib.parse.urlsplit(request.path).path)
        if not path.startswith("/upload/") and request.headers.get("Authorization") != f"Bearer {self.token}":
            return 401, {"error": "Invalid credentials"}, {}
        if self.failing:
            self.failing -= 1
            return 503, {"error": "busy"}, {}
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            asked = json.loads(request.body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if name in self.repositories:
                return 409, {"error": "exists", "url": f"{self.url}/{name}"}, {}
            self.repositories[name], self.private[name] = [{}], asked.get("visibility") == "private"
            return 200, {"url": f"{self.url}/{name}", "id": name}, {}
        if parts[0] == "upload":
            return self._take(parts[1], request.body)
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._object(item) for item in json.loads(request.body)["objects"]]}, {}
        if parts[:2] == ["api", "models"]:
            return self._api("/".join(parts[2:4]), parts[4:], request)
        if len(parts) > 3 and parts[2] == "resolve":
            return self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]), request)
        self.unknown.append(f"{request.command} {path}")
        return 404, {"error": "not found"}, {}

    def _take(self, digest: str, content: bytes) -> tuple[int, object, dict[str, str]]:
        time.sleep(self.delay)
        if hashlib.sha256(content).hexdigest() != digest:
            return 400, {"error": "wrong content"}, {}
        with self._taking:
            if taken := len(self.uploads) != self.full_at:
                self.objects[digest] = content
                self.uploads.append(digest)
        if not taken:
            self.emptied.wait()
            return 503, {"error": "busy"}, {}
        return 200, b"", {}

    def _object(self, item: dict) -> dict:
        actions = {} if item["oid"] in self.objects else {"actions": {"upload": {"href": f"{self.url}/upload/{item['oid']}"}}}
        return {"oid": item["oid"], "size": item["size"], **actions}

    def _api(self, repository: str, rest: list[str], request) -> tuple[int, object, dict[str, str]]:
        if repository not in self.repositories:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
        commits = self.repositories[repository]
        if not rest or rest[0] == "revision":
            return 200, {"id": repository, "modelId": repository, "sha": _revision(len(commits)), "tags": [], "siblings": []}, {}
        if rest[0] == "preupload":
            asked = json.loads(request.body)["files"]
            modes = [{"path": item["path"], "uploadMode": "lfs" if item["size"] >= LFS_FROM else "regular"} for item in asked]
            return 200, {"files": [{**mode, "shouldIgnore": False, "oid": None} for mode in modes]}, {}
        if rest[0] == "commit":
            commits.append(dict(commits[-1]))
            for line in request.body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    commits[-1][item["value"]["path"]] = base64.b64decode(item["value"]["content"])
                elif item["key"] == "lfsFile":
                    commits[-1][item["value"]["path"]] = self.objects[item["value"]["oid"]]
            url = f"{self.url}/{repository}/commit/{_revision(len(commits))}"
            return 200, {"success": True, "commitUrl": url, "commitOid": _revision(len(commits)), "hookOutput": ""}, {}
        if rest[0] == "paths-info":
            found = commits[_number(rest[1], commits) - 1]
            asked = urllib.parse.parse_qs(request.body.decode())["paths"] if b"{" not in request.body else json.loads(request.body)["paths"]
            return 200, [_entry(name, found[name]) for name in asked if name in found], {}
        self.unknown.append(f"{request.command} api {rest}")
        return 404, {"error": "not found"}, {}

    def _resolve(self, repository: str, revision: str, name: str, request) -> tuple[int, object, dict[str, str]]:
        commits = self.repositories.get(repository)
        if commits is None:
            return 404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
        content = commits[_number(revision, commits) - 1].get(name)
        if content is None:
            return 404, b"", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": _revision(len(commits))}
        if request.command == "HEAD":
            return 200, b"", {**headers, "Content-Length": str(len(content)), "Accept-Ranges": "bytes"}
        start = int((request.headers.get("Range") or "bytes=0-")[6:].partition("-")[0])
        return (206 if start else 200), content[start:], headers

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def _revision(number: int) -> str:
    return f"{number:040x}"


def _number(revision: str, commits: list) -> int:
    return len(commits) if revision == "main" else int(revision, 16)


def _entry(name: str, content: bytes) -> dict:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    large = (
        {"lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}} if len(content) >= LFS_FROM else {}
    )
    return {"type": "file", "path": name, "size": len(content), "oid": blob, **large}
