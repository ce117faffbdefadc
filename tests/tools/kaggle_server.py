"""A server on the loopback in place of Kaggle's, for its client: it records requests and answers as told."""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

URL = "http://localhost"  # where the client believes the server to be; a proxy setting sends it to the port


class KaggleServer(ThreadingHTTPServer):
    """Answers POST by the last part of the address with `answers`.

    A dict is JSON, bytes are a file, text is an address to go to, (status, dict) is an error. `received`
    holds the content of each request, by the same name, and `uploaded` that of the last PUT.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.received, self.uploaded = {}, {}, None
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def environment(self, home) -> dict[str, str]:
        """The environment of a client that talks to this server only."""
        cleared = {
            name: value
            for name, value in os.environ.items()
            if "proxy" not in name.lower() and "KAGGLE" not in name
        }
        return cleared | {
            "HOME": str(home),
            "KAGGLE_USERNAME": "somebody",
            "KAGGLE_KEY": "0" * 31 + "f",
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "HTTP_PROXY": f"http://127.0.0.1:{self.server_port}",
            "NO_PROXY": "",
        }


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        name = self.path.rpartition("/")[2]
        self.server.received[name] = json.loads(self.read_body())
        self.answer(self.server.answers.get(name, (404, {"code": 404, "message": f"not found: {name}"})))

    def do_GET(self):
        self.answer(
            self.server.answers.get(
                self.path.rpartition("/")[2], (404, {"code": 404, "message": "no such file"})
            )
        )

    def do_PUT(self):
        self.server.uploaded = self.read_body()
        self.answer({})

    def read_body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def answer(self, content):
        status, content = content if isinstance(content, tuple) else (200, content)
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(302 if isinstance(content, str) else status)
        if isinstance(content, str):
            self.send_header("Location", content)
        self.send_header(
            "Content-Type", "application/octet-stream" if isinstance(content, bytes) else "application/json"
        )
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""
