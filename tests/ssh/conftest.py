"""Fixtures of the ssh tests: ``api`` (a fake API server), ``sshd`` (a pod), ``laptop`` (a faked home with the tool)."""

import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from stand_ins import KEY, SSHD, Api, Laptop, Sshd


@pytest.fixture
def api():
    """A running fake API server."""
    state = Api()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            state.seen.append((self.command, self.path, self.headers.get("Authorization")))
            state.bodies.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
            time.sleep(state.delay)
            status, body = state.reply(self.path)
            self.send_response(status)
            if status in (301, 302, 307):
                self.send_header("Location", body.decode())
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):
            """A client that hung up, as the time-out tests do."""

    server = Quiet(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def sshd(tmp_path):
    """A pod: a running sshd."""
    if SSHD is None:
        pytest.skip("needs OpenSSH's server (Debian: openssh-server)")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd separates privileges there when it runs as root
    folder = tmp_path / "pod"
    folder.mkdir()
    server = Sshd(folder)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def laptop(tmp_path, monkeypatch, api):
    """A home without any ssh configuration, and an environment that points to the fake server."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("RUNPOD_SSH_HOSTS", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    monkeypatch.setenv("RUNPOD_API_URL", api.url)
    return Laptop(home)
