"""The S3 that the binary speaks to during a run: objects in memory, on loopback."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = "conformance"


class Bucket:
    """Starts at once; `objects` are by key."""

    def __init__(self):
        objects = self.objects = {}
        self.requests = 0
        counted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self, status, body=b"", **headers):
                counted.requests += 1
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def key(self):
                return self.path.split("?")[0].removeprefix(f"/{NAME}").removeprefix("/")

            def do_GET(self):  # noqa: N802
                if not self.key():  # whether there is such a bucket
                    return self.answer(200, b"<ListBucketResult></ListBucketResult>")
                if (found := objects.get(self.key())) is None:
                    return self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
                self.answer(200, found, ETag=f'"{hash(found):x}"')

            do_HEAD = do_GET  # noqa: N815

            def do_DELETE(self):  # noqa: N802
                objects.pop(self.key(), None)
                self.answer(204)

            def do_PUT(self):  # noqa: N802
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if "x-amz-decoded-content-length" in self.headers:
                    body = unchunked(body)
                if self.headers.get("If-None-Match") == "*" and self.key() in objects:
                    return self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
                objects[self.key()] = body
                self.answer(200, ETag=f'"{hash(body):x}"')

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}"


def unchunked(body):
    """The content of S3's `aws-chunked` encoding, whose trailers are left out."""
    whole, at = b"", 0
    while True:
        end = body.index(b"\r\n", at)
        size = int(body[at:end].split(b";")[0], 16)
        if size == 0:
            return whole
        whole += body[end + 2 : end + 2 + size]
        at = end + 2 + size + 2
