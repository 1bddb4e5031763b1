"""Downloads with a checksum against curl, on the same local server: is the network the limit, and not this program?

    python benchmarks/download_throughput.py [--megabytes 256] [--files 4] [--repeats 5]

Both fetch the same files four at a time to the same disk, in turns; the median of the pairs' ratios counts. curl is
shown twice: alone, and followed by sha1sum, which is the work that the download does here.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from music_training.library import downloads


def main() -> None:
    """Print throughput (MB/s) and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=256, help="size of each file")
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        names = write(root / "served", given.files, given.megabytes)
        ports = multiprocessing.SimpleQueue()
        server = multiprocessing.Process(target=serve, args=(root / "served", ports), daemon=True)
        server.start()
        url = f"http://127.0.0.1:{ports.get()}/"
        rows: dict[str, list[float]] = {"this program, sha1": [], "curl": [], "curl, then sha1sum": []}
        for _ in range(given.repeats):
            for way, run in (("this program, sha1", ours), ("curl", curl), ("curl, then sha1sum", curl_and_sum)):
                target = root / "got"
                target.mkdir()
                start = time.monotonic()
                run(url, names, target)
                rows[way].append(given.files * given.megabytes / (time.monotonic() - start))
                shutil.rmtree(target)
        server.kill()
    print(f"{given.files} files of {given.megabytes} MB at a time, {given.repeats} rounds, median MB/s:")
    for way, rates in rows.items():
        pairs = [mine / peer for mine, peer in zip(rows["this program, sha1"], rates, strict=True)]
        print(f"  {way:<20} {statistics.median(rates):8.0f} MB/s   this program against it: {statistics.median(pairs):.2f}")


def write(folder: Path, files: int, megabytes: int) -> dict[str, str]:
    """Random files; name to SHA-1."""
    folder.mkdir()
    names = {}
    for number in range(files):
        state, block = hashlib.sha1(), os.urandom(1 << 20)
        with open(folder / f"{number}.bin", "wb") as stream:
            for _ in range(megabytes):
                stream.write(block)
                state.update(block)
        names[f"{number}.bin"] = state.hexdigest()
    return names


def serve(folder: Path, ports) -> None:
    """A server that costs little, in a process of its own: the kernel copies the files."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_) -> None:
            pass

        def do_GET(self) -> None:
            path = folder / self.path.lstrip("/")
            self.send_response(200)
            self.send_header("Content-Length", str(path.stat().st_size))
            self.end_headers()
            self.wfile.flush()
            with open(path, "rb") as stream:
                self.connection.sendfile(stream)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    ports.put(server.server_address[1])
    server.serve_forever()


def ours(url: str, names: dict[str, str], target: Path) -> None:
    """The downloads of this project."""
    wanted = [downloads.Wanted((url + name,), target / name, digests={"sha1": digest}) for name, digest in names.items()]
    downloads.fetch_all(wanted, workers=len(names))


def curl(url: str, names: dict[str, str], target: Path) -> None:
    """curl, as many processes as files."""
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: subprocess.run(["curl", "-sf", "-o", str(target / name), url + name], check=True), names))


def curl_and_sum(url: str, names: dict[str, str], target: Path) -> None:
    """curl, and the check that makes its result as good."""

    def work(name: str) -> None:
        subprocess.run(["curl", "-sf", "-o", str(target / name), url + name], check=True)
        found = subprocess.run(["sha1sum", str(target / name)], check=True, capture_output=True, text=True).stdout
        if not found.startswith(names[name]):
            raise SystemExit(f"{name}: wrong checksum")

    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(work, names))


if __name__ == "__main__":
    main()
