"""What is exported gives the same audio in AudioCraft; its card says what is known; a push sends exactly the export."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from music_training import files
from music_training.errors import UserError
from music_training.library import catalogue
from music_training.musicgen import audiocraft_compat, cards, export, models

audiocraft_compat.install()

import torch  # noqa: E402
from audiocraft.models import CompressionModel, MusicGen  # noqa: E402


def drawn(model) -> torch.Tensor:
    model.set_generation_params(duration=0.6, top_k=32)
    torch.manual_seed(3)
    return model.generate(["four tones", None])


def test_audiocraft_gives_the_same_audio_from_the_export(speakers, tmp_path):
    out = export.export(speakers, tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "compression_state_dict.bin", "state_dict.bin"]
    ours = models.load_musicgen(speakers)
    assert torch.equal(drawn(MusicGen.get_pretrained(str(out), device="cpu")), drawn(ours))
    audio = torch.sin(torch.arange(32000) / 20)[None, None]
    codec = CompressionModel.get_pretrained(str(out))
    with torch.no_grad():
        codes = codec.encode(audio)[0]
        assert torch.equal(codes, ours.compression_model.encode(audio)[0])
        assert torch.equal(codec.decode(codes), ours.compression_model.decode(codes))
    only = export.export("codec", tmp_path / "codec")
    with torch.no_grad():
        assert torch.equal(CompressionModel.get_pretrained(str(only)).encode(audio)[0], codes)
    assert "CompressionModel.get_pretrained" in (only / "README.md").read_text()
    assert export.export(speakers, out) == out  # again, over itself
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(UserError, match="is there and is no export"):
        export.export(speakers, tmp_path / "mine")


def test_a_published_codec_is_exported_by_its_name(speakers, tmp_path):
    config = models.read_config(files.absolute(speakers))
    config.compression_model_checkpoint = "//pretrained/facebook/encodec_32khz"
    model = models.load_language_model(speakers)
    models.save_weights(files.outputs_root() / "named", model.state_dict(), config)
    out = export.export("named", tmp_path / "out")
    assert torch.load(out / "compression_state_dict.bin", weights_only=True)["pretrained"] == "facebook/encodec_32khz"


def track(name: str, licence: str, synthetic: bool = False) -> catalogue.Track:
    return catalogue.Track(name, f"{name}.wav", "fma", "someone", licence=licence, synthetic=synthetic)


def test_the_card_says_data_licences_figures_and_commands(speakers, egs):
    catalogue.write(catalogue.path_of("tones"), [track("a", "CC0"), track("b", "CC BY-NC | 4.0"), track("c", "CC0", synthetic=True)])
    folder = files.absolute(speakers)
    text = cards.card(folder, models.read_config(folder))
    for said in ("license: other", "| CC0 | 2 | yes |", "| CC BY-NC \\| 4.0 | 1 | no, or unclear |", "**Synthetic**", "lut"):
        assert said in text
    assert "start_from" not in text and "datasource.train=egs/tones/train" in text and "None were measured" in text
    assert cards.overall_licence("", [track("a", "CC0 1.0"), track("b", "Public Domain")]) == "cc0-1.0"
    assert cards.overall_licence("facebook/musicgen-small", [track("a", "CC0")]) == "cc-by-nc-4.0"
    assert cards.overall_licence("someone/model", []) == cards.overall_licence("", []) == "other"


class Hub(ThreadingHTTPServer):
    """As much of the hub as an upload needs; ``received`` are files by name, ``requests`` what was asked with which token."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.received: dict[str, bytes] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def _answer(self, content: dict | None = None, status: int = 200) -> None:
        body = json.dumps(content or {}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub, path = self.server, self.path.partition("?")[0]
        hub.requests.append((self.command, path, self.headers.get("Authorization")))
        if path.startswith("/stored/"):
            hub.stored[path.removeprefix("/stored/")] = body
            return self._answer()
        if self.headers.get("Authorization") != "Bearer secret-token":
            return self._answer({"error": "Invalid credentials"}, 401)
        if path == "/api/repos/create":
            return self._answer({"url": f"{hub.url}/me/model"})
        if path == "/api/models/me/model/preupload/main":
            asked = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "lfs" if file["path"].endswith(".bin") else "regular"} for file in asked]
            return self._answer({"files": [{**mode, "shouldIgnore": False, "oid": None} for mode in modes]})
        if path == "/me/model.git/info/lfs/objects/batch":
            actions = lambda oid: {"upload": {"href": f"{hub.url}/stored/{oid}"}}  # noqa: E731
            objects = [{**known, "actions": actions(known["oid"])} for known in json.loads(body)["objects"]]
            return self._answer({"transfer": "basic", "objects": objects})
        if path == "/api/models/me/model/commit/main":
            import base64

            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.received[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "lfsFile":
                    hub.received[line["value"]["path"]] = hub.stored[line["value"]["oid"]]
            return self._answer({"commitUrl": f"{hub.url}/me/model/commit/1", "commitOid": "1", "success": True, "hookOutput": ""})
        return self._answer({"id": "me/model", "siblings": [], "errors": [], "warnings": []})

    do_GET = do_POST = do_PUT = _do


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield server
    server.shutdown()
    server.server_close()


def command(*arguments: str, token: str = "") -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_TOKEN": token}
    whole = [sys.executable, "-m", "music_training.musicgen.export", *arguments]
    return subprocess.run(whole, capture_output=True, text=True, cwd=files.REPOSITORY, env=environment, timeout=200)


def test_a_push_sends_the_export_and_nothing_else_and_only_when_asked(hub, speakers, tmp_path):
    out = export.export("codec", tmp_path / "out")
    (out / ".hidden").write_text("not for others")
    asked = ["--out", str(out), "--push", "me/model"]
    dry = command(*asked)
    assert dry.returncode == 0 and "dry run, nothing was sent" in dry.stdout and "README.md" in dry.stdout and ".hidden" not in dry.stdout
    without = command(*asked, "--yes")
    assert without.returncode == 2 and "HF_TOKEN" in without.stderr
    assert not hub.requests
    sent = command(*asked, "--yes", token="secret-token")
    assert sent.returncode == 0, sent.stderr
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in hub.received.items()}
    assert digests == {name: files.digest(out / name) for name in ("README.md", "compression_state_dict.bin")}
    refused = command(*asked, "--yes", token="wrong-token")
    assert refused.returncode == 2 and "the hub refuses" in refused.stderr.splitlines()[-1] and "wrong-token" not in refused.stderr
    for repository in ("model", "a/b/c", "/b"):
        with pytest.raises(UserError, match="owner/name"):
            export.push(out, repository)


def test_the_command_has_one_line_for_a_mistake(outputs, tmp_path):
    for arguments, said in ((["--out", str(tmp_path / "x")], "nothing to do"), (["no_run", "--out", str(tmp_path / "x")], "no_run")):
        done = command(*arguments)
        assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
