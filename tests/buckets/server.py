"""A server of buckets on this machine, as S3 and Google Cloud Storage answer: reads and lists.

It waits before each answer as a network does, can refuse, and can be stopped and started again.
Both services answer these requests alike: HEAD and GET of an object, and GET of a list of keys.
"""

import asyncio
import contextlib
import hashlib
import pathlib
import re
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from xml.sax.saxutils import escape

_RANGE = re.compile(rb"range: bytes=(\d+)-(\d*)", re.IGNORECASE)
_MATCH = re.compile(rb"if-match: ([^\r]+)", re.IGNORECASE)
_REASONS = {200: "OK", 206: "Partial Content", 403: "Forbidden", 404: "Not Found"}


class Server:
    """Objects by bucket and key; `stop` and `start` may be called again and again."""

    def __init__(self, buckets: dict[str, dict[str, bytes]], latency: float = 0.0):
        self.buckets, self.latency = buckets, latency
        self.refuses = False  # whether every request is answered by 403
        self.requests: list[str] = []  # method and target of each
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._run(self._start())

    def stop(self) -> None:
        """Closes the port and all connections."""
        self._run(self._stop())

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        if self._server:
            self._server.close()
        serving = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if self.latency:
                    await asyncio.sleep(self.latency)
                for part in self._answer(head):
                    writer.write(part)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _answer(self, head: bytes) -> tuple[bytes, ...]:
        """Returns head and body of the answer to a request."""
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        self.requests.append(f"{method} {target}")
        path, _, query = target.partition("?")
        name, _, key = urllib.parse.unquote(path.lstrip("/")).partition("/")
        objects = self.buckets.get(name)
        if self.refuses:
            return _failed(403, "AccessDenied")
        if objects is None:
            return _failed(404, "NoSuchBucket")
        if not key:
            return _answered(200, _listing(objects, dict(urllib.parse.parse_qsl(query))))
        if key not in objects:
            return _failed(404, "NoSuchKey")
        data = objects[key]
        tag = _tag(data)
        wanted = _MATCH.search(head)
        if wanted and wanted[1].decode() != tag:
            return _failed(412, "PreconditionFailed")
        more = f"ETag: {tag}\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
        found = _RANGE.search(head)
        if not found:
            return _answered(200, b"" if method == "HEAD" else data, more, len(data))
        start, end = int(found[1]), min(int(found[2] or len(data)) + 1, len(data))
        more += f"Content-Range: bytes {start}-{end - 1}/{len(data)}\r\n"
        return _answered(206, memoryview(data)[start:end], more)


def _tag(data: bytes) -> str:
    return f'"{hashlib.md5(data[:64] + b"%d" % len(data)).hexdigest()}"'


def _listing(objects: dict[str, bytes], query: dict[str, str]) -> bytes:
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    rows = [
        f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size>"
        f"<ETag>{escape(_tag(data))}</ETag>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        for key, data in sorted(objects.items())
        if key.startswith(prefix) and not (delimiter and delimiter in key[len(prefix) :])
    ]
    text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(rows)}</ListBucketResult>"
    return text.encode()


def _failed(status: int, code: str) -> tuple[bytes, ...]:
    return _answered(status, f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode())


def _answered(status: int, body, more: str = "", length: int | None = None) -> tuple[bytes, ...]:
    size = len(body) if length is None else length
    reason = _REASONS.get(status, "Failed")
    return f"HTTP/1.1 {status} {reason}\r\nContent-Length: {size}\r\n{more}\r\n".encode(), body


def settings(url: str) -> dict[str, str]:
    """Returns the environment with which both schemes lead to the server at a URL."""
    account = (
        f'{{"gcs_base_url": "{url}", "disable_oauth": true, "client_email": "", '
        '"private_key": "", "private_key_id": ""}'
    )
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "GOOGLE_SERVICE_ACCOUNT_KEY": account,
    }


@contextlib.contextmanager
def serving(buckets: dict[str, dict[str, bytes]], latency: float = 0.0) -> Iterator[Server]:
    """Serves buckets during the block."""
    server = Server(buckets, latency)
    server.start()
    try:
        yield server
    finally:
        server.close()


def main() -> None:
    """Serves the files below a folder in one bucket, b, until the standard input is closed."""
    folder, latency = sys.argv[1:]
    files = {str(path.relative_to(folder)): path for path in pathlib.Path(folder).rglob("*")}
    objects = {key: path.read_bytes() for key, path in files.items() if path.is_file()}
    with serving({"b": objects}, float(latency)) as server:
        print(server.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
