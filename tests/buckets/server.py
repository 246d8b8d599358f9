"""A server of buckets on this machine, as S3 and Google Cloud Storage answer.

It waits before each answer as a network does, can refuse, and can be stopped and started again.
Both services answer these requests alike: HEAD, GET, PUT and DELETE of an object, an upload in
parts, and GET of a list of keys. A condition of a PUT is an ETag for S3, a generation for Google.
"""

import asyncio
import contextlib
import hashlib
import itertools
import pathlib
import re
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from xml.sax.saxutils import escape, unescape

from tests.ports import free_port

_RANGE = re.compile(rb"range: bytes=(\d+)-(\d*)", re.IGNORECASE)
_MATCH = re.compile(rb"\nif-match: ([^\r]+)", re.IGNORECASE)
_NONE_MATCH = re.compile(rb"\nif-none-match: ", re.IGNORECASE)
_GENERATION = re.compile(rb"\nx-goog-if-generation-match: ([0-9]+)", re.IGNORECASE)
_LENGTH = re.compile(rb"\ncontent-length: ([0-9]+)", re.IGNORECASE)
_REASONS = {200: "OK", 206: "Partial Content", 403: "Forbidden", 404: "Not Found"}


class Server:
    """Objects by bucket and key; `stop` and `start` may be called again and again."""

    def __init__(self, buckets: dict[str, dict[str, bytes]], latency: float = 0.0):
        self.buckets, self.latency = buckets, latency
        self.refuses = False  # whether every request is answered by 403
        self.read_only = False  # whether every write is
        self.conditional = True  # whether it knows conditional writes
        self._generations: dict[tuple[str, str], int] = {}  # of the objects that were written
        self._uploads: dict[str, dict[int, bytes]] = {}  # parts by number, by upload
        self._numbers = itertools.count(2)
        self.requests: list[str] = []  # method and target of each
        self.port = free_port()  # also while it is stopped
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
                length = _LENGTH.search(head)
                body = await reader.readexactly(int(length[1])) if length else b""
                if self.latency:
                    await asyncio.sleep(self.latency)
                for part in self._answer(head, body):
                    writer.write(part)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def _answer(self, head: bytes, body: bytes) -> tuple[bytes, ...]:
        """Returns head and body of the answer to a request."""
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        self.requests.append(f"{method} {target}")
        path, _, query = target.partition("?")
        name, _, key = urllib.parse.unquote(path.lstrip("/")).partition("/")
        options = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        writes = method in ("PUT", "POST", "DELETE")
        if self.refuses or (self.read_only and writes):
            return _failed(403, "AccessDenied")
        if name not in self.buckets:
            return _failed(404, "NoSuchBucket")
        if writes:
            return self._change(name, key, method, options, head, body)
        if not key:
            return _answered(200, self._listing(name, options))
        if key not in self.buckets[name]:
            return _failed(404, "NoSuchKey")
        return self._read(name, key, method, head)

    def _read(self, name: str, key: str, method: str, head: bytes) -> tuple[bytes, ...]:
        data, more = self.buckets[name][key], self._versions(name, key)
        wanted = _MATCH.search(head)
        if wanted and wanted[1].decode() != self._tag(name, key):
            return _failed(412, "PreconditionFailed")
        more += "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
        found = _RANGE.search(head)
        if not found:
            return _answered(200, b"" if method == "HEAD" else data, more, len(data))
        start, end = int(found[1]), min(int(found[2] or len(data)) + 1, len(data))
        more += f"Content-Range: bytes {start}-{end - 1}/{len(data)}\r\n"
        return _answered(206, memoryview(data)[start:end], more)

    def _change(
        self, name: str, key: str, method: str, options: dict[str, str], head: bytes, body: bytes
    ) -> tuple[bytes, ...]:
        if method == "DELETE":
            self.buckets[name].pop(key, None)
            return _answered(204, b"")
        if "delete" in options:  # S3's removal of several objects
            keys = re.findall("<Key>(.*?)</Key>", body.decode())
            for each in map(unescape, keys):
                self.buckets[name].pop(each, None)
            text = "".join(f"<Deleted><Key>{each}</Key></Deleted>" for each in keys)
            return _answered(200, _result("DeleteResult", text))
        upload = options.get("uploadId", "")
        if "uploads" in options:
            upload = f"upload-{next(self._numbers)}"
            self._uploads[upload] = {}
            text = f"<UploadId>{upload}</UploadId>"
            return _answered(200, _result("InitiateMultipartUploadResult", text))
        if method == "POST":  # the end of an upload
            parts = self._uploads.pop(upload)
            self._put(name, key, b"".join(parts[number] for number in sorted(parts)))
            text = f"<ETag>{escape(self._tag(name, key))}</ETag>"
            done = _result("CompleteMultipartUploadResult", text)
            return _answered(200, done, self._versions(name, key))
        if upload:
            self._uploads[upload][int(options["partNumber"])] = body
            return _answered(200, b"", 'ETag: "part"\r\n')
        match, generation = _MATCH.search(head), _GENERATION.search(head)
        if (match or generation or _NONE_MATCH.search(head)) and not self.conditional:
            return _failed(501, "NotImplemented")
        there = key in self.buckets[name]
        if (
            (match and not (there and match[1].decode() == self._tag(name, key)))
            or (generation and int(generation[1]) != there * self._generation(name, key))
            or (_NONE_MATCH.search(head) and there)
        ):
            return _failed(412, "PreconditionFailed")
        self._put(name, key, body)
        return _answered(200, b"", self._versions(name, key))

    def _put(self, name: str, key: str, data: bytes) -> None:
        self.buckets[name][key] = data
        self._generations[name, key] = next(self._numbers)

    def _generation(self, name: str, key: str) -> int:
        return self._generations.get((name, key), 1)

    def _tag(self, name: str, key: str) -> str:
        data = self.buckets[name][key]
        content = b"%d %d " % (self._generation(name, key), len(data)) + data[:64]
        return f'"{hashlib.md5(content).hexdigest()}"'

    def _versions(self, name: str, key: str) -> str:
        generation = self._generation(name, key)
        return f"ETag: {self._tag(name, key)}\r\nx-goog-generation: {generation}\r\n"

    def _listing(self, name: str, query: dict[str, str]) -> bytes:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        objects = list(self.buckets[name].items())  # a test may add some meanwhile
        rows = [
            f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size>"
            f"<ETag>{escape(self._tag(name, key))}</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for key, data in sorted(objects)
            if key.startswith(prefix) and not (delimiter and delimiter in key[len(prefix) :])
        ]
        return _result("ListBucketResult", f"<IsTruncated>false</IsTruncated>{''.join(rows)}")


def _result(name: str, content: str) -> bytes:
    return f"<{name}>{content}</{name}>".encode()


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
