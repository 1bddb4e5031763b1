"""A real HTTP server on 127.0.0.1 that serves files and misbehaves as it is told; imports nothing of the product."""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FaultServer:
    """Serves ``root``; ``plan[path]`` is a list of faults, one used up by each request for that path.

    A fault is a dict with ``kind``: ok, drop (at: bytes of the body sent before the connection is reset), close (the same,
    closed politely), ignore_range, status (code, retry_after), wrong_length (delta), corrupt (at), slow (delay seconds
    between pieces), wrong_range (shift), replace (content: what the file is from now on), no_validator.
    """

    def __init__(self, root: Path, validators: bool = True, ranges: bool = True):
        self.root, self.validators, self.ranges = Path(root), validators, ranges
        self.plan: dict[str, list[dict]] = {}
        self.requests: list[tuple[str, str | None]] = []  # path, Range
        self._guard = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"

    def __enter__(self) -> FaultServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    def next_fault(self, path: str) -> dict:
        with self._guard:
            faults = self.plan.get(path)
            return faults.pop(0) if faults else {"kind": "ok"}

    def _handler(outer):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                name = self.path.lstrip("/").split("?")[0]
                fault = outer.next_fault(name)
                file = outer.root / name
                if fault["kind"] == "replace":
                    file.write_bytes(fault["content"])
                if fault["kind"] == "status":
                    return self.refuse(fault["code"], fault.get("retry_after"))
                if not file.is_file() or ".." in name:
                    return self.refuse(404)
                size = file.stat().st_size
                tag = None
                if outer.validators and fault["kind"] != "no_validator":
                    tag = f'"{hashlib.md5(str((size, file.stat().st_mtime_ns)).encode()).hexdigest()}"'
                asked = self.headers.get("Range")
                match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "") if outer.ranges and fault["kind"] != "ignore_range" else None
                condition = self.headers.get("If-Range")
                if match and condition and condition != tag:
                    match = None
                first, last = 0, size - 1
                if match:
                    first = int(match[1])
                    last = min(int(match[2]) if match[2] else last, size - 1)
                    if first >= size:
                        return self.refuse(416)
                    self.send_response(206)
                    shift = fault.get("shift", 0) if fault["kind"] == "wrong_range" else 0
                    self.send_header("Content-Range", f"bytes {first + shift}-{last + shift}/{size + shift}")
                else:
                    self.send_response(200)
                if tag:
                    self.send_header("ETag", tag)
                length = last - first + 1
                stated = max(0, length + (fault.get("delta", 0) if fault["kind"] == "wrong_length" else 0))
                self.send_header("Content-Length", str(stated))
                self.end_headers()
                with outer._guard:
                    outer.requests.append((name, asked))
                self.body(file, first, min(length, stated), fault)
                if stated > length:
                    self.close_connection = True

            def refuse(self, code, retry_after=None):
                self.send_response(code)
                if retry_after is not None:
                    self.send_header("Retry-After", str(retry_after))
                self.send_header("Content-Length", "0")
                self.end_headers()

            def body(self, file, first, length, fault):
                kind, at = fault["kind"], fault.get("at", 0)
                sent = 0
                with open(file, "rb") as stream, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    stream.seek(first)
                    if kind in ("ok", "ignore_range", "replace", "no_validator", "wrong_length", "wrong_range"):
                        if length > 1 << 20:
                            self.wfile.flush()
                            sent = self.connection.sendfile(stream, first, length)
                        else:
                            self.wfile.write(stream.read(length))
                            sent = length
                    elif kind in ("drop", "close"):
                        sent = min(at, length)
                        self.wfile.write(stream.read(sent))
                        self.close_connection = True
                        if kind == "drop" and sent < length:  # a reset instead of a goodbye
                            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                            with contextlib.suppress(OSError):
                                self.connection.shutdown(socket.SHUT_RD)
                    elif kind == "corrupt":
                        content = bytearray(stream.read(length))
                        if content:
                            content[at % len(content)] ^= 0x55
                        self.wfile.write(content)
                        sent = length
                    elif kind == "slow":
                        while sent < length and (piece := stream.read(min(fault.get("piece", 1 << 14), length - sent))):
                            self.wfile.write(piece)
                            sent += len(piece)
                            time.sleep(fault["delay"])

        return Handler
