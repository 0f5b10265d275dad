"""A stand-in for the server of W&B, which records what the package `wandb` uploads.

It answers only what `wandb sync` and the online mode ask for, and does not check keys. Like the real
server, it keeps the lines of a run's history by their position: an upload that begins at 0 replaces
what an earlier upload under the same id has written.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.tracked_run import Point, copied_points

HISTORY = "wandb-history.jsonl"


@dataclass
class RecordingServer:
    """What was uploaded.

    Attributes:
        history: lines of the history, by id of the run.
        configs: the configuration of each run, as it was first sent.
        uploads: ids in the order in which uploads of a history began.
    """

    url: str = ""
    history: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    uploads: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which the package uses this server."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "0" * 40, "WANDB_ERROR_REPORTING": "false"}

    def points(self, uid: str) -> Counter[Point]:
        """Count the points of a run."""
        return copied_points(self.history[uid])

    def answer(self, path: str, body: bytes) -> dict[str, Any]:
        """Record a request and return the answer."""
        if path == "/graphql":
            return {"data": self._query(json.loads(body))}
        if path.endswith("/file_stream"):
            uid = path.split("/")[-2]
            self._store(uid, json.loads(body).get("files", {}).get(HISTORY))
        return {}

    def _store(self, uid: str, chunk: dict[str, Any] | None) -> None:
        if chunk is None:
            return
        lines, offset = self.history.setdefault(uid, []), chunk["offset"]
        if offset == 0:
            self.uploads.append(uid)
            lines.clear()
        assert offset == len(lines), "a gap in the history"
        lines += [json.loads(line) for line in chunk["content"]]

    def _query(self, query: dict[str, Any]) -> dict[str, Any]:
        variables = query.get("variables") or {}
        if "upsertBucket" in query["query"]:
            if variables.get("config"):
                self.configs.setdefault(variables["name"], json.loads(variables["config"]))
            project = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": "someone"}}
            names = {key: variables.get(key) for key in ("name", "displayName")}
            bucket = {**names, "id": "b", "config": "{}", "historyLineCount": 0, "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "createRunFiles" in query["query"]:
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if "viewer" in query["query"]:
            return {"viewer": {"id": "v", "entity": "someone", "username": "someone", "flags": "{}"}}
        return {}


@contextlib.contextmanager
def recording_server() -> Iterator[RecordingServer]:
    """Start the stand-in on this machine, and end it afterwards."""
    record = RecordingServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Print nothing."""

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            answer = json.dumps(record.answer(self.path, body)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def do_PUT(self) -> None:
            self.do_POST()

        def do_GET(self) -> None:
            self.do_POST()

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that resets its connection is no error."""

    server = Server(("127.0.0.1", 0), Handler)
    record.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield record
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
