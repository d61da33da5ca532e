"""A Hugging Face hub for tests: a server on this machine with one repository."""

import contextlib
import http.server
import json
import threading
import urllib.parse

from tests.http_server import Server

NAME = "facebook/vit-mae-base"
COMMITS = {"main": "a" * 40, "v2": "b" * 40}
TOKEN = "hf_secret"


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers `resolve` requests from `self.server.folders[revision]`."""

    def log_message(self, *_):
        pass

    def refuse(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        if code == "EntryNotFound":  # the cache remembers it
            self.send_header("X-Repo-Commit", COMMITS["main"])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, content):
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self):
        """Takes what an upload sends: a repository, then a commit of files."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.refuse(401, "RepoNotFound")
        if "/commit/" in self.path:
            self.server.commits.append([json.loads(line) for line in body.splitlines()])
            url = f"https://huggingface.co/{NAME}/commit/{COMMITS['main']}"
            return self.send({"commitUrl": url, "commitOid": COMMITS["main"]})
        if "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self.send({"files": files})
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
        url = f"https://huggingface.co/{NAME}"
        return self.send({"url": url, "warnings": [], "errors": []})

    def list_files(self):
        """Answers a `tree` request."""
        revision = self.path.partition("/tree/")[2].partition("?")[0].strip("/")
        folder = self.server.folders[revision]
        self.send(
            [
                {
                    "type": "file",
                    "path": str(path.relative_to(folder)),
                    "size": path.stat().st_size,
                    "oid": "0" * 40,
                }
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            ]
        )

    def do_HEAD(self):
        self.server.seen.append(self.path)
        if self.path.startswith(f"/api/models/{NAME}/tree/"):
            return self.list_files()
        repository, _, rest = self.path[1:].partition("/resolve/")
        revision, _, name = rest.partition("/")
        names = {commit: name for name, commit in COMMITS.items()}
        revision = names.get(revision, revision)
        if repository == "me/private":
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.refuse(401, "GatedRepo")
        elif repository != NAME:
            return self.refuse(404, "RepoNotFound")
        if revision not in COMMITS:
            return self.refuse(404, "RevisionNotFound")
        path = self.server.folders[revision] / urllib.parse.unquote(name)
        if not path.is_file():
            return self.refuse(404, "EntryNotFound")
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMITS[revision])
        self.send_header("ETag", f'"{revision}-{name}-{len(content)}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
        return None

    do_GET = do_HEAD


@contextlib.contextmanager
def serve(folders):
    """Serves folders, by revision; yields the server and its address."""
    server = Server(("127.0.0.1", 0), Hub)
    server.folders, server.seen = folders, []
    server.commits, server.created = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
