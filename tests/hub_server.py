"""A stand-in for the Hugging Face hub on this machine, with one model, for the tests of sources."""

import contextlib
import hashlib
import http.server
import json
import threading
from pathlib import Path

COMMIT = "0123456789" * 4
# What the hub says of each of these, in the header of its answer.
ERRORS = {
    "some/gated": (403, "GatedRepo"),
    "some/other": (404, "RepoNotFound"),
    "some/model@v2": (404, "RevisionNotFound"),
}


def _handler(folder):
    files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    digests = {name: hashlib.sha1(data).hexdigest() for name, data in files.items()}
    tree = []
    for name, data in files.items():
        tree.append({"type": "file", "path": name, "size": len(data), "oid": digests[name]})
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def _answer(self, body, status=200, **headers):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            path = self.path.partition("?")[0]
            for name, (status, code) in ERRORS.items():
                repository, _, revision = name.partition("@")
                if f"/{repository}/" in path and path.endswith(revision):
                    return self._answer(b"{}", status, X_Error_Code=code)
            if path == f"/api/models/some/model/tree/{COMMIT}":
                return self._answer(json.dumps(tree).encode(), Content_Type="application/json")
            if path.startswith("/api/models/some/model"):
                about = {"id": "some/model", "sha": COMMIT, "siblings": []}
                return self._answer(json.dumps(about).encode(), Content_Type="application/json")
            name = path.rpartition("/")[2]
            if name not in files:
                return self._answer(b"{}", 404)
            if self.command == "GET":
                asked.append(name)
            about = {"X_Repo_Commit": COMMIT, "ETag": f'"{digests[name]}"'}
            return self._answer(files[name], **about)

        do_HEAD = do_GET

    return Handler, asked


@contextlib.contextmanager
def serving(folder):
    """Serves a directory as some/model; yields the address, and the names of files as they go."""
    handler, asked = _handler(folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()
