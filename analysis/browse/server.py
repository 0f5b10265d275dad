"""The browse page from a small local server, which reads the shards when a problem is opened.

The input is the `Content` of some runs. The output is answers to requests from this machine only,
under an address with a secret part. On a cluster, a researcher reaches it over an SSH tunnel. The
server never writes, and no request names a file: names of data files are parsed.
"""

from __future__ import annotations

import re
import secrets
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from analysis.browse.content import Block, Content, data_file
from analysis.browse.export import page_html
from core_hpc.common.errors import CoreHpcError, InputError

HOST = "127.0.0.1"
_BLOCK = re.compile(r"(?P<kind>[bd])(?P<run>\d{1,6})-(?P<split>[a-z]{1,20})-(?P<iteration>\d{1,9})(-(?P<key>\d{1,9}))?")
_PROBLEMS = re.compile(r"p(?P<run>\d{1,6})-(?P<split>[a-z]{1,20})")


class BrowseServer(ThreadingHTTPServer):
    """Serves the page of some runs until it is shut down.

    Args:
        content: the content of the runs.
        title: the title of the page.
        port: the port; 0 takes a free one.

    Raises:
        InputError: the port is taken, or does not exist.
    """

    daemon_threads = True

    def __init__(self, content: Content, *, title: str, port: int = 0) -> None:
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as e:
            why = e.strerror if isinstance(e, OSError) else "ports are 0 to 65535"
            raise InputError(f"--port {port}: {why}; choose another, or leave it out for a free one") from e
        self._content = content
        self._lock = threading.Lock()  # one request reads shards at a time, which bounds the memory
        self._page = page_html(title).encode()
        # Other users of a login node can reach the port, so the address has a part that they do not know.
        self._secret = secrets.token_urlsafe(16)

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.port}/{self._secret}/"

    def answer(self, path: str) -> tuple[str, bytes] | None:
        """The type and the content of what a path names, or None."""
        prefix, _, name = path.split("?")[0].removeprefix("/").partition("/")
        if not secrets.compare_digest(prefix.encode(), self._secret.encode()):
            return None
        if name in ("", "index.html"):
            return "text/html; charset=utf-8", self._page
        found = re.fullmatch(r"data/([\w-]{1,80})\.js", name)
        if found is None:
            return None
        with self._lock:
            try:
                content = self._data(found[1])
            except CoreHpcError as e:
                content = {"error": str(e)}
        return None if content is None else ("text/javascript; charset=utf-8", data_file(found[1], content))

    def _data(self, name: str) -> dict[str, Any] | None:
        if name == "index":
            return self._content.index(live=True)
        known = {block.name: block for block in self._content.blocks}
        if found := _PROBLEMS.fullmatch(name):
            has = any((b.run, b.split) == (int(found["run"]), found["split"]) for b in known.values())
            return self._content.problems(int(found["run"]), found["split"]) if has else None
        if (found := _BLOCK.fullmatch(name)) is None:
            return None
        block = known.get(Block(int(found["run"]), found["split"], int(found["iteration"])).name)
        if block is None or (found["kind"] == "d") != (found["key"] is not None):
            return None
        if found["kind"] == "b":
            return self._content.block(block)
        problem = self._content.problem_at(block, int(found["key"]))
        return dict(self._content.details(block, [problem])) if problem is not None else None


class _Handler(BaseHTTPRequestHandler):
    server: BrowseServer

    def do_GET(self) -> None:
        answer = self.server.answer(self.path)
        if answer is None:
            self.send_error(404)
            return
        kind, content = answer
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the terminal shows the address only."""
