"""A Hugging Face hub for tests: a server on this machine with one repository."""

import contextlib
import http.server
import threading

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
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self):
        self.server.seen.append(self.path)
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
        path = self.server.folders[revision] / name
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
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
