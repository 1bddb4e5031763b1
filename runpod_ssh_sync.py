#!/usr/bin/env python3
"""Reach rented GPU pods by name: ssh configuration, file transfer, tunnels. One file, Python 3.9+, nothing to install.

    export RUNPOD_API_KEY=...                     # or put the key in ~/.runpod/api_key, chmod 600
    python runpod_ssh_sync.py config              # now `ssh my-pod`, scp, rsync and editors know every running pod
    python runpod_ssh_sync.py list                # pods, their state and address; writes nothing
    python runpod_ssh_sync.py watch               # keep the configuration current: ports change at every restart
    python runpod_ssh_sync.py push my-pod         # this repository -> /workspace/music-training
    python runpod_ssh_sync.py pull my-pod         # /workspace/outputs -> outputs/ (or $MUSIC_OUTPUTS)
    python runpod_ssh_sync.py sync my-pod         # push the code, then pull the outputs
    python runpod_ssh_sync.py run my-pod "nvidia-smi"
    python runpod_ssh_sync.py shell my-pod
    python runpod_ssh_sync.py tunnel my-pod       # JupyterLab on localhost:8888, TensorBoard on localhost:6006
    python runpod_ssh_sync.py forget-host my-pod  # after a pod was recreated and has a new host key
    python runpod_ssh_sync.py stop my-pod         # end the rent of its GPU; its volume stays (on a pod: stop $RUNPOD_POD_ID)

A pod is named as in the console, by the alias that `list` shows, by its id or by `runpod-<id>`.

What `config` does. It writes `~/.ssh/config.d/runpod` (0600) and puts one marked `Include` line at the top of
`~/.ssh/config`, because ssh ignores an Include that stands below a Host block; everything else in that file stays as it
is, one backup is kept (`config.before-runpod`), and `--remove` takes the line out again. `--dry-run` says what would
change, `--diff` shows it; neither writes. The same pods give the same bytes. Names become safe aliases: what is not a
letter, digit, `_` or `-` turns into `-` (dots too, so that no pod can pose as `github.com`); names that occur twice, or
that your own configuration already uses, get `-<id>` appended. Stopped pods have no address and therefore no Host block.
Host keys are learnt at the first connection (`accept-new`), in a known_hosts file of their own and under the pod's id, so
a new port changes nothing; a *changed* key is refused.

When the server fails (an error, no answer in time, an answer that is not understood), the configuration stays as it was
and the exit status is 1. Pods that are gone are pruned. A list that has become *empty* could be a fault too, so it prunes
only if a second interface of the server (GraphQL) agrees that there are no pods, or with `config --prune`; otherwise the
entries stay. The list is read from the REST interface v2, from v1 or GraphQL where a server has no v2.

Other providers: a JSON file, `--hosts` or $RUNPOD_SSH_HOSTS, by default `~/.runpod/hosts.json`; with it, no API key is needed:

    {"hosts": [{"name": "lab", "host": "203.0.113.7", "port": 2222, "user": "ubuntu", "identity": "~/.ssh/lab"}]}

Transfers need rsync on both sides and a pod with a public TCP port 22 ("direct" in `list`); RunPod's proxy carries a
shell only. An interrupted transfer is continued by the same command. Nothing is deleted unless `--delete` is given.

The API key is sent to the server over verified TLS and shown nowhere; child processes do not inherit it. Another server:
$RUNPOD_API_URL. Another configuration: `--ssh-config PATH`; its folder then holds config.d/runpod and known_hosts_runpod.
Exit status: 0 done, 1 failed, 2 cannot run as asked, 255 ssh could not connect, else what ssh or rsync returned.
Works on Linux, macOS and WSL.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import fcntl
import http.client
import json
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent
REMOTE_CODE = "/workspace/music-training"
REMOTE_OUTPUTS = "/workspace/outputs"
DEFAULT_SERVER = "https://api.runpod.io"
DEFAULT_SERVER_V1 = "https://rest.runpod.io"  # v1 lives on a host of its own
LARGEST_ANSWER = 64 * 2**20  # bytes
LOCK_PATIENCE = 60.0  # seconds

CODE_EXCLUDES = [".git/", ".venv/", "__pycache__/", "*.pyc", ".ipynb_checkpoints/", "*.egg-info/", ".DS_Store", ".env"]
CODE_EXCLUDES += [".pytest_cache/", ".ruff_cache/", ".hypothesis/"]
REPOSITORY_EXCLUDES = ["/outputs/", "/data/", "/build/"]
OUTPUT_EXCLUDES = [".*.tmp", "*.part", ".ipynb_checkpoints/", "__pycache__/"]


class Failure(Exception):
    """Something did not work; the message is one line, the exit status 1."""

    status = 1


class Mistake(Failure):
    """The command cannot run as asked; the message says what to change, the exit status is 2."""

    status = 2


class Interrupted(KeyboardInterrupt):
    """A signal came while a child process was at work, which has ended since."""


# Pods, and the three forms in which the API lists them


@dataclass(frozen=True)
class Pod:
    """One machine. ``host`` is empty while it has no address (stopped, starting)."""

    id: str
    name: str
    status: str = ""
    host: str = ""
    port: int = 22
    user: str = "root"
    direct: bool = True  # False: through the provider's proxy, which carries a shell only
    provider: str = "runpod"
    identity: str = ""

    @property
    def key_alias(self) -> str:
        """The name of the host key, and a second alias, whatever the pod's name and port; ssh knows host keys in lower case only."""
        return f"{self.provider}-{self.id}".lower()


_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|(?=[^:]*:[^:]*:)[0-9A-Fa-f:.]{2,45}")
_GRAPHQL = (
    "query { myself { pods { id name desiredStatus machine { podHostId } runtime { ports { ip isIpPublic privatePort publicPort } } } } }"
)


def parse_pods(document: object) -> list[Pod]:
    """Pods from a decoded answer of v2 (``{"pods": [...]}``), v1 (a bare list) or GraphQL (``{"data": {"myself": ...}}``).

    Pods whose id is unusable and terminated ones are left out; an address with unusable parts counts as none.
    Raises ``Failure`` if the document has none of these forms.
    """
    if isinstance(document, list):
        rows, read = document, _read_v1
    elif isinstance(document, dict) and "pods" in document:
        rows, read = document["pods"], _read_v2
    elif isinstance(document, dict) and not document.get("errors"):
        rows, read = _member(document, "data", "myself", "pods"), _read_graphql
    else:
        raise Failure("the server's answer reports an error instead of a list of pods")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and isinstance(row.get("id"), str) for row in rows):
        raise Failure("the server's answer is not a list of pods")
    pods = {}
    for row in rows:
        pod = read(row)
        if _ID.fullmatch(pod.id) and pod.status != "TERMINATED":
            pods.setdefault(pod.key_alias, pod)
    return list(pods.values())


def _member(value: object, *names: str) -> object:
    """``value[a][b]...``, or None where one of them is missing or not an object."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def _text(value: object, limit: int = 64) -> str:
    return value[:limit] if isinstance(value, str) else ""


def _read_v2(row: dict) -> Pod:
    pod = Pod(row["id"], _text(row.get("name")), _text(row.get("status")).upper())
    direct, proxy = (_member(row, "ssh", way) for way in ("direct", "proxy"))
    return _addressed(pod, direct, True) or _addressed(pod, proxy, False) or pod


def _read_v1(row: dict) -> Pod:
    pod = Pod(row["id"], _text(row.get("name")), _text(row.get("desiredStatus")).upper())
    return _addressed(pod, {"host": row.get("publicIp"), "port": _member(row, "portMappings", "22")}, True) or pod


def _read_graphql(row: dict) -> Pod:
    pod = Pod(row["id"], _text(row.get("name")), _text(row.get("desiredStatus")).upper())
    ports = _member(row, "runtime", "ports")
    if not isinstance(ports, list):
        return pod
    for port in ports:
        if _member(port, "privatePort") == 22 and _member(port, "isIpPublic"):
            found = _addressed(pod, {"host": _member(port, "ip"), "port": _member(port, "publicPort")}, True)
            if found:
                return found
    return _addressed(pod, {"host": "ssh.runpod.io", "username": _member(row, "machine", "podHostId") or ""}, False) or pod


def _addressed(pod: Pod, address: object, direct: bool) -> Pod | None:
    """The pod with this address, or None unless every part of it is safe to stand in a configuration file."""
    host, port, user = (_member(address, name) for name in ("host", "port", "username"))
    port = 22 if port is None and not direct else int(port) if isinstance(port, str) and port.isascii() and port.isdigit() else port
    user = "root" if user is None else user
    usable = isinstance(host, str) and _HOST.fullmatch(host) and isinstance(user, str) and _USER.fullmatch(user)
    if not usable or type(port) is not int or not 0 < port < 65536:
        return None
    return replace(pod, host=host, port=port, user=user, direct=direct)


def read_hosts_table(path: Path) -> list[Pod]:
    """Machines of other providers from a JSON file; raises ``Mistake`` with the entry and the key that is wrong."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Mistake(f"{path}: no such hosts file") from None
    except (ValueError, RecursionError) as error:
        raise Mistake(f"{path}: not JSON ({error})") from None
    rows = document.get("hosts") if isinstance(document, dict) else None
    if not isinstance(rows, list):
        raise Mistake(f'{path}: expected {{"hosts": [{{"name": ..., "host": ...}}]}}')
    pods = {}
    for number, row in enumerate(rows, 1):
        where = f"{path}: host {number}"
        if not isinstance(row, dict):
            raise Mistake(f"{where}: expected an object with name and host")
        unknown = sorted(set(row) - {"name", "host", "port", "user", "identity"})
        if unknown:
            raise Mistake(f"{where}: unknown key {unknown[0]!r}; known are name, host, port, user, identity")
        name, identity = row.get("name"), row.get("identity", "")
        key = safe_name(name).lower() if isinstance(name, str) else ""
        if not key or key in pods:
            raise Mistake(f"{where}: name {name!r} is {'used twice' if key else 'missing or has no letter or digit'}")
        address = {"host": row.get("host"), "port": row.get("port", 22), "username": row.get("user", "root")}
        pod = _addressed(Pod(key, name[:64], "TABLE", provider="host"), address, True)
        if pod is None:
            raise Mistake(f"{where} ({printable(name)}): host, port (1-65535) or user is missing or has characters that ssh does not take")
        if not isinstance(identity, str):
            raise Mistake(f"{where} ({printable(name)}): identity must be a path")
        pods[key] = replace(pod, identity=config_path(Path(identity).expanduser()) if identity else "")
    return list(pods.values())


# The server


class Server:
    """The provider's API. The key goes into a request header and nowhere else; no message holds it."""

    def __init__(self, base: str, key: str, timeout: float):
        base = re.sub(r"/(v1|v2|graphql)/*$", "", base.rstrip("/"))
        try:
            parts = urllib.parse.urlsplit(base)
            host, _ = parts.hostname, parts.port
        except ValueError:
            parts = host = None
        if not host or parts.scheme not in ("https", "http") or parts.username or parts.query or not re.fullmatch(r"[!-~]+", base):
            raise Mistake("RUNPOD_API_URL: expected https://HOST[:PORT][/PATH] without user or query")
        local = host in ("localhost", "127.0.0.1", "::1")
        if parts.scheme == "http" and not local:
            raise Mistake("RUNPOD_API_URL: the key is only sent over https (http is for localhost)")
        self.base, self.name, self.timeout, self.answered_by = base, host, timeout, ""
        self._headers = {"Authorization": "Bearer " + key, "Accept": "application/json", "User-Agent": "runpod-ssh-sync"}
        self._opener = urllib.request.build_opener(_NoRedirect, *([urllib.request.ProxyHandler({})] if local else []))

    def pods(self) -> list[Pod]:
        """All pods of the account, from the newest interface that the server has; raises ``Failure``."""
        v1 = DEFAULT_SERVER_V1 if self.base == DEFAULT_SERVER else self.base
        for url, body in ((self.base + "/v2/pods", None), (v1 + "/v1/pods", None), (self.base + "/graphql", {"query": _GRAPHQL})):
            document = self._ask(url, body)
            if document is not _NOT_THERE:
                self.answered_by = url
                return parse_pods(document)
        raise Failure(f"{self.name}: no list of pods at /v2/pods, /v1/pods or /graphql; is RUNPOD_API_URL right?")

    def confirms_empty(self) -> bool:
        """Whether a second interface, asked after an empty list, says too that there are no pods."""
        url = self.base + "/graphql"
        if self.answered_by == url:
            return False
        try:
            document = self._ask(url, {"query": _GRAPHQL})
            return document is not _NOT_THERE and parse_pods(document) == []
        except Failure:
            return False

    def stop(self, id: str) -> None:
        """Stop a pod, through the newest interface that the server has; raises ``Failure``."""
        v1 = DEFAULT_SERVER_V1 if self.base == DEFAULT_SERVER else self.base
        query = f'mutation {{ podStop(input: {{podId: "{id}"}}) {{ id desiredStatus }} }}'
        ways = [(f"{self.base}/v2/pods/{id}/action", {"action": "stop"}), (f"{v1}/v1/pods/{id}/stop", {})]
        for url, body in [*ways, (self.base + "/graphql", {"query": query})]:
            document = self._ask(url, body)
            if document is not _NOT_THERE:
                if _member(document, "errors"):
                    raise Failure(f"{self.name}: the server's answer to stopping {id} reports an error")
                return
        raise Failure(f"{self.name}: pod {id} is not known there, or the server cannot stop pods")

    def _ask(self, url: str, document: dict | None) -> object:
        body = None if document is None else json.dumps(document).encode()
        headers = {**self._headers, "Content-Type": "application/json"} if body else self._headers
        deadline = time.monotonic() + self.timeout
        try:
            with self._opener.open(urllib.request.Request(url, body, headers), timeout=self.timeout) as answer:
                content = bytearray()
                while chunk := answer.read1(2**16):
                    content += chunk
                    if len(content) > LARGEST_ANSWER:
                        raise Failure(f"{self.name}: the answer is over {LARGEST_ANSWER // 2**20} MiB long")
                    if time.monotonic() > deadline:
                        raise TimeoutError
            return json.loads(content) if content or document is None else {}
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (404, 405, 410, 501):
                return _NOT_THERE
            reason = "the API key is not accepted" if error.code in (401, 403) else "the server failed"
            raise Failure(f"{self.name}: {reason} (HTTP {error.code})") from None
        except (OSError, http.client.HTTPException) as error:
            # The texts of these exceptions may quote what the server sent: only what is known to be harmless is told.
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(cause, (TimeoutError, socket.timeout)):
                raise Failure(f"{self.name}: no complete answer within {self.timeout:g} s") from None
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise Failure(f"{self.name}: the TLS certificate is not trusted ({cause.verify_message})") from None
            detail = cause.strerror if isinstance(cause, OSError) and cause.strerror else type(cause).__name__
            raise Failure(f"{self.name}: cannot be reached ({detail})") from None
        except (ValueError, RecursionError):
            raise Failure(f"{self.name}: the answer is not JSON") from None


_NOT_THERE = object()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another address: it counts as an error."""

    def redirect_request(self, *_: object) -> None:
        return None


def read_key(path: Path | None) -> str:
    """The API key from $RUNPOD_API_KEY or from a file that only its owner can read; empty if there is neither."""
    key, source = os.environ.get("RUNPOD_API_KEY", "").strip(), "RUNPOD_API_KEY"
    if path is not None or not key:
        source = path or Path.home() / ".runpod" / "api_key"
        try:
            with open(source, encoding="utf-8", errors="replace") as file:
                mode = os.fstat(file.fileno()).st_mode & 0o777
                if mode & 0o077:
                    raise Mistake(f"{source}: others can read this key (mode {mode:04o}); run: chmod 600 {shlex.quote(str(source))}")
                key = file.read(4096).strip()
        except FileNotFoundError:
            if path is not None:
                raise Mistake(f"{source}: no such key file") from None
            return ""
    if not re.fullmatch(r"[!-~]+", key):
        raise Mistake(f"{source}: holds no usable API key (one line of printable characters)")
    return key


# The text of the configuration


def printable(text: str) -> str:
    """Text from outside as a terminal may show it: without control characters and line breaks."""
    return "".join(character if character.isprintable() else "?" for character in text)


def safe_name(name: str) -> str:
    """An alias made of letters, digits, ``_`` and ``-`` that starts with a letter or digit; empty if nothing is left."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-_")[:63].rstrip("-_")


def config_path(path: Path) -> str:
    """A path as it stands in the configuration: below ``~`` if it lies in the home that ssh uses, quoted if it must be.

    For an Include ssh takes ``$HOME`` for ``~``, elsewhere the home of the user database; where they differ no ``~`` is used.
    """
    text = os.path.abspath(path)
    home = pwd.getpwuid(os.getuid()).pw_dir.rstrip("/")
    if home and text.startswith(home + "/") and os.path.abspath(os.environ.get("HOME") or home) == home:
        text = "~" + text[len(home) :]
    if not re.fullmatch(r"[^\x00-\x1f\x7f\"'\\%$*?\[\]#]+", text):
        raise Mistake(f"{printable(text)}: ssh takes no path with quotes or * ? [ ] % $ # \\ in a configuration file")
    return f'"{text}"' if " " in text else text


def aliases(pods: list[Pod], taken: set[str]) -> dict[str, Pod]:
    """A unique alias for each pod, in alphabetical order; ``taken`` are names the person's own configuration uses.

    A name that several pods share is given to none of them alone: which one it meant would depend on the order.
    """
    names = {pod.key_alias: safe_name(pod.name) for pod in pods}
    lowered = [name.lower() for name in names.values()]
    reserved = {name.lower() for name in taken} | {"localhost"}
    for alias, name in names.items():
        if name and (lowered.count(name.lower()) > 1 or name.lower() in reserved or name.lower() in {other.lower() for other in names}):
            names[alias] = f"{name}-{alias.split('-', 1)[1]}"
    lowered = [name.lower() for name in names.values()]
    found = {}
    for pod in pods:
        name = names[pod.key_alias]
        found[name if name and lowered.count(name.lower()) == 1 and name.lower() not in reserved else pod.key_alias] = pod
    return dict(sorted(found.items()))


HEADER = "# Written by runpod_ssh_sync.py: changes made here are lost. To remove it: runpod_ssh_sync.py config --remove\n"


def render(named: dict[str, Pod], identity: str, known_hosts: str) -> str:
    """The content of ``config.d/runpod``. The comment lines hold the pods as JSON, so that they can be read back."""
    blocks = [HEADER + "# settings " + json.dumps({"identity": identity}) + "\n"]
    for alias, pod in named.items():
        lines = ["# pod " + json.dumps(asdict(pod), sort_keys=True)]
        if pod.host:
            names = alias if alias == pod.key_alias else f"{alias} {pod.key_alias}"
            lines += [f"Host {names}", f"    HostName {pod.host}", f"    Port {pod.port}", f"    User {pod.user}"]
            # All pods share the proxy's host key: it keeps its own name, and RunPod's proxy insists on a terminal.
            lines += [f"    HostKeyAlias {pod.key_alias}"] if pod.direct else ["    RequestTTY yes"]
            lines += [f"    UserKnownHostsFile {known_hosts}", "    StrictHostKeyChecking accept-new", "    CheckHostIP no"]
            lines += [f"    IdentityFile {pod.identity or identity}"] if pod.identity or identity else []
            lines += ["    IdentitiesOnly yes", "    ConnectTimeout 20", "    ServerAliveInterval 30", "    ServerAliveCountMax 4"]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def read_back(text: str) -> tuple[list[Pod], str]:
    """Pods and identity from a file that ``render`` wrote; lines that do not fit are passed over."""
    pods, identity, known = [], "", {field.name for field in fields(Pod)}
    for line in text.splitlines():
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            if line.startswith("# settings "):
                identity = str(json.loads(line[len("# settings ") :]).get("identity", ""))
            elif line.startswith("# pod "):
                row = json.loads(line[len("# pod ") :])
                if set(row) == known and _ID.fullmatch(row["id"]):
                    pods.append(Pod(**row))
    return pods, identity


MARK = b"# runpod_ssh_sync.py"
CREATED = b"(created this file)"
_OUR_LINE = re.compile(rb"(?m)^Include [^\r\n]*# runpod_ssh_sync\.py[^\n]*(?:\n|\Z)")
_FIRST_BLOCK = re.compile(rb'(?mi)^[ \t\r\f]*"?(?:host|match)(?=[ \t="])')


def with_include(config: bytes | None, path: str) -> bytes:
    """``~/.ssh/config`` with our Include line above the first Host or Match; None stands for a file that does not exist.

    A line of ours that stands well is left there. Inverse: :func:`without_include`.
    """
    config_or_empty = config or b""
    ours = list(_OUR_LINE.finditer(config_or_empty))
    created = config is None or any(CREATED in match.group() for match in ours)
    bare = _OUR_LINE.sub(b"", config_or_empty)
    first_line = bare.partition(b"\n")
    newline = b"\r\n" if first_line[1] and first_line[0].endswith(b"\r") else b"\n"
    line = b" ".join([b"Include", os.fsencode(path), MARK] + [CREATED] * created) + newline
    block = _FIRST_BLOCK.search(config_or_empty)
    if len(ours) == 1 and ours[0].group() == line and (block is None or ours[0].start() < block.start()):
        return config_or_empty
    return line + bare


def without_include(config: bytes | None) -> bytes | None:
    """``~/.ssh/config`` as it was before our line came in; None if it did not exist then and nothing was added."""
    if config is None:
        return None
    bare = _OUR_LINE.sub(b"", config)
    created = any(CREATED in match.group() for match in _OUR_LINE.finditer(config))
    return None if created and not bare else bare


def own_hosts(config: bytes | None) -> set[str]:
    """Literal names in the Host lines of the person's configuration: a pod must not take them over."""
    names = set()
    for line in (config or b"").decode("utf-8", "replace").splitlines():
        match = re.match(r"[ \t]*host[ \t=]+(.*)", line, re.IGNORECASE)
        names.update(word.strip('"') for word in (match.group(1).split() if match else []) if not re.search(r"[*?!]", word))
    return names


# The configuration files


@dataclass(frozen=True)
class Place:
    """Where everything lies: the main configuration and, beside it, what belongs to this tool."""

    main: Path
    explicit: bool  # ssh has to be told which file to read

    @property
    def own(self) -> Path:
        return self.main.parent / "config.d" / "runpod"

    @property
    def known_hosts(self) -> Path:
        return self.main.parent / "known_hosts_runpod"

    @property
    def backup(self) -> Path:
        return self.main.with_name(self.main.name + ".before-runpod")

    @property
    def ssh(self) -> list[str]:
        return ["ssh", "-F", str(self.main)] if self.explicit else ["ssh"]


def find_place(option: str | None) -> Place:
    """``--ssh-config``, else ``~/.ssh/config``; ssh itself ignores $HOME, so a different one has to be named to it."""
    if option:
        return Place(Path(os.path.abspath(os.path.expanduser(option))), True)
    home = Path.home()
    return Place(home / ".ssh" / "config", os.path.realpath(home) != os.path.realpath(pwd.getpwuid(os.getuid()).pw_dir))


def read_or_none(path: Path) -> bytes | None:
    """A file's bytes, None if there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def write_atomically(path: Path, content: bytes, mode: int) -> None:
    """Put ``content`` at ``path`` in one step; a symlink stays and its target is written."""
    target = Path(os.path.realpath(path))
    handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def locked(path: Path, patience: float, waiting: str):
    """Hold an exclusive lock on the file ``path``; it ends with the process. Yields the descriptor."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        began, told = time.monotonic(), False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waited = time.monotonic() - began
                if waited > patience:
                    raise Failure(f"{path}: still locked after {patience:g} s; another run is at work") from None
                if waited > 1 and not told:
                    told = True
                    print(waiting, file=sys.stderr)
                time.sleep(0.05)
        yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def configuration_lock(place: Place):
    """Make the folders (0700) where they are missing and keep other runs out."""
    for folder in (place.main.parent, place.own.parent):
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(place.main.parent / ".runpod_ssh_sync.lock", LOCK_PATIENCE, "waiting for another run of this tool"):
        yield


def read_own(place: Place) -> str:
    """Our file's text, empty if there is none; refuses a file of that name which somebody else wrote."""
    content = read_or_none(place.own)
    text = (content or b"").decode("utf-8", "replace")
    if text and not text.startswith(HEADER[:36]):
        raise Mistake(f"{place.own}: was not written by this tool; move it away first")
    return text


@dataclass(frozen=True)
class Plan:
    """What the files hold and what they shall hold; ``after`` is None for a file that shall not exist."""

    named: dict[str, Pod]
    notes: list[str]
    changes: list[tuple[Path, bytes | None, bytes | None]]


def plan_config(place: Place, args: argparse.Namespace) -> Plan:
    """Ask the server and work out both files, without writing; raises ``Failure`` where the old files must stay."""
    own, main = read_own(place), read_or_none(place.main)
    before, identity = read_back(own)
    if getattr(args, "identity", None):
        identity = "" if args.identity == "none" else config_path(Path(args.identity).expanduser())
    pods, notes = wanted_pods(before, args)
    named = aliases(pods, own_hosts(main))
    text = render(named, identity, config_path(place.known_hosts))
    changes = [(place.own, own.encode() or None, text.encode()), (place.main, main, with_include(main, config_path(place.own)))]
    return Plan(named, notes, [change for change in changes if change[1] != change[2]])


def wanted_pods(before: list[Pod], args: argparse.Namespace) -> tuple[list[Pod], list[str]]:
    """The pods to write: the server's and the hosts table's; and what there is to say about them."""
    table, key = hosts_table(args), read_key(args.key_file)
    known = [pod for pod in before if pod.provider == "runpod"]
    if not key:
        if not table:
            raise Mistake("no API key: set RUNPOD_API_KEY, or put the key in ~/.runpod/api_key and chmod 600 it")
        return known + table, ["no API key: only the hosts table was read"] if known else []
    server = open_server(key, args)
    pods = server.pods()
    if known and not pods and not getattr(args, "prune", False) and not server.confirms_empty():
        note = f"{server.name} lists no pods and a second interface does not confirm it: {len(known)} stay; drop them with: config --prune"
        return known + table, [note]
    return pods + table, []


def open_server(key: str, args: argparse.Namespace) -> Server:
    return Server(os.environ.get("RUNPOD_API_URL") or DEFAULT_SERVER, key, args.timeout)


def hosts_table(args: argparse.Namespace) -> list[Pod]:
    """The hosts table that was asked for, or the default one where it exists."""
    option = args.hosts or os.environ.get("RUNPOD_SSH_HOSTS")
    path = Path(option).expanduser() if option else Path.home() / ".runpod" / "hosts.json"
    return read_hosts_table(path) if option or path.exists() else []


def apply_plan(place: Place, plan: Plan) -> None:
    """Write what differs: our file first, so that an Include never points to nothing."""
    for path, before, after in plan.changes:
        if path == place.own:
            write_atomically(path, after, 0o600)
            continue
        if before is not None and not _OUR_LINE.search(before):
            write_atomically(place.backup, before, 0o600)
        write_atomically(path, after, path.stat().st_mode & 0o777 if before is not None else 0o600)


def update(place: Place, args: argparse.Namespace) -> Plan:
    """Bring the configuration up to date. The server is asked under the lock: the last to write has the newest list."""
    with configuration_lock(place):
        plan = plan_config(place, args)
        apply_plan(place, plan)
    return plan


def describe(place: Place, plan: Plan) -> list[str]:
    """One line for each pod that came, went or moved."""
    before = next((content for path, content, _ in plan.changes if path == place.own), None)
    pods, _ = read_back((before or b"").decode("utf-8", "replace"))
    old = {pod.key_alias: pod for pod in pods}
    new = {pod.key_alias: (alias, pod) for alias, pod in plan.named.items()}
    if all(path != place.own for path, _, _ in plan.changes):
        return []
    lines = [f"- {printable(pod.name)} ({pod.id}) is gone" for key, pod in old.items() if key not in new]
    for key, (alias, pod) in new.items():
        if key not in old:
            lines.append(f"+ {alias}: {address(pod)}")
        elif address(old[key]) != address(pod):
            lines.append(f"~ {alias}: {address(old[key])} -> {address(pod)}")
    return lines


def address(pod: Pod) -> str:
    """``host:port`` for reading."""
    if not pod.host:
        return "no address" + (f" ({printable(pod.status).lower()})" if pod.status else "")
    host = f"[{pod.host}]" if ":" in pod.host else pod.host
    return f"{host}:{pod.port}" + ("" if pod.direct else " (proxy, shell only)")


# Commands on the configuration


def command_config(args: argparse.Namespace) -> int:
    place = find_place(args.ssh_config)
    if args.remove:
        return remove_config(place, args)
    if args.dry_run or args.diff:
        plan = plan_config(place, args)
        show_plan(plan, args.diff)
        return 0
    plan = update(place, args)
    for line in plan.notes + describe(place, plan):
        print(line)
    reachable = sum(bool(pod.host) for pod in plan.named.values())
    print(f"{place.own}: {'written' if plan.changes else 'up to date'}, {len(plan.named)} hosts, {reachable} with an address")
    return 0


def show_plan(plan: Plan, diff: bool) -> None:
    """Say or show what would change."""
    for note in plan.notes:
        print(note)
    for path, before, after in plan.changes:
        verb = "create" if before is None else "remove" if after is None else "change"
        print(f"would {verb} {path}")
        if diff:
            old, new = (printable_lines(content) for content in (before, after))
            for line in difflib.unified_diff(old, new, f"{path} (now)", f"{path} (then)", lineterm=""):
                print(line)
    if not plan.changes:
        print("nothing to change")


def printable_lines(content: bytes | None) -> list[str]:
    return [printable(line.expandtabs().rstrip("\r")) for line in (content or b"").decode("utf-8", "replace").split("\n")]


def remove_config(place: Place, args: argparse.Namespace) -> int:
    """Take the Include line and our file away. Learnt host keys stay: to trust a machine anew is a decision of its own."""

    def plan() -> Plan:
        own, main = read_own(place), read_or_none(place.main)
        changes = [(place.main, main, without_include(main)), (place.own, own.encode() or None, None)]
        return Plan({}, [], [change for change in changes if change[1] != change[2]])

    if args.dry_run or args.diff or not place.main.parent.is_dir():
        show_plan(plan(), args.diff)
        return 0
    with configuration_lock(place):
        changes = plan().changes
        for path, _, after in changes:
            if after is None:
                Path(os.path.realpath(path)).unlink()
            else:
                write_atomically(path, after, path.stat().st_mode & 0o777)
                if read_or_none(place.backup) == after:
                    place.backup.unlink()
        with contextlib.suppress(OSError):  # others may have files there
            place.own.parent.rmdir()
    print("removed: " + ", ".join(str(path) for path, _, _ in changes) if changes else "nothing to remove")
    if place.known_hosts.exists():
        print(f"kept: {place.known_hosts} (host keys learnt so far)")
    return 0


def command_list(args: argparse.Namespace) -> int:
    place = find_place(args.ssh_config)
    plan = plan_config(place, args)
    for note in plan.notes:
        print(note, file=sys.stderr)
    if args.json:
        print(json.dumps([{"alias": alias, **asdict(pod)} for alias, pod in plan.named.items()], indent=1))
        return 0
    rows = [("alias", "name", "id", "state", "address")]
    rows += [(alias, printable(pod.name), pod.id, printable(pod.status).lower(), address(pod)) for alias, pod in plan.named.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print("  ".join(cell.ljust(widths[column]) for column, cell in enumerate(row)).rstrip())
    return 0


def command_watch(args: argparse.Namespace) -> int:
    """Follow the pods until Ctrl-C; a failing server is asked less and less often, up to every 5 minutes."""
    place, pause, last_note = find_place(args.ssh_config), args.interval, ""
    while True:
        try:
            plan = update(place, args)
            lines, pause = describe(place, plan), args.interval
            note = "; ".join(plan.notes)
        except Mistake:
            raise
        except Failure as error:
            lines, note, pause = [], f"{error}; the configuration stays as it is", min(2 * pause, max(300.0, args.interval))
        for line in lines + ([note] if note and note != last_note else []):
            print(time.strftime("%H:%M:%S"), line, flush=True)
        last_note = note
        time.sleep(pause)


def command_forget_host(args: argparse.Namespace) -> int:
    place = find_place(args.ssh_config)
    pods, _ = read_back(read_own(place))
    try:
        alias = find_pod(args.pod, place, pods)[1].key_alias
    except Mistake:
        if not _ID.fullmatch(args.pod):
            raise
        alias = Pod(args.pod[7:] if args.pod.startswith("runpod-") else args.pod, "").key_alias  # a pod that is gone already
    if not place.known_hosts.exists():
        print(f"no host key of {alias} is known")
        return 0
    with configuration_lock(place):
        command = ["ssh-keygen", "-q", "-R", alias, "-f", str(place.known_hosts)]
        before = place.known_hosts.read_bytes()
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=child_environment(), check=False)
        if done.returncode:
            raise Failure(f"{place.known_hosts}: ssh-keygen could not change it: {printable(done.stderr.strip())}")
        place.known_hosts.with_name(place.known_hosts.name + ".old").unlink(missing_ok=True)
    forgotten = place.known_hosts.read_bytes() != before
    print(f"{'forgot the host key' if forgotten else 'no host key'} of {alias}{'' if forgotten else ' is known'}")
    return 0


# Commands on a pod


def command_stop(args: argparse.Namespace) -> int:
    """A pod that names itself (its own $RUNPOD_POD_ID) is stopped without a look at the list, and writes nothing."""
    key, id = read_key(args.key_file), args.pod
    if not key:
        raise Mistake("no API key: set RUNPOD_API_KEY, or put the key in ~/.runpod/api_key and chmod 600 it")
    server = open_server(key, args)
    if id != os.environ.get("RUNPOD_POD_ID") or not _ID.fullmatch(id):
        pod = find_pod(id, find_place(args.ssh_config), server.pods())[1]
        id = pod.id
    print(f"{'would stop' if args.dry_run else 'stopping'} pod {id} through {server.name}", flush=True)
    if not args.dry_run:
        server.stop(id)
    return 0


def find_pod(name: str, place: Place, pods: list[Pod]) -> tuple[str, Pod]:
    """Alias and pod for what a person calls it: alias, id, ``runpod-<id>`` or the name in the console."""
    named = aliases(pods, own_hosts(read_or_none(place.main)))
    for alias, pod in named.items():
        if name in (alias, pod.key_alias, pod.id):
            return alias, pod
    called = [alias for alias, pod in named.items() if name[:64] == pod.name]
    if len(called) == 1:
        return called[0], named[called[0]]
    if called:
        raise Mistake(f"{printable(name)}: several pods have this name; say {' or '.join(called)}")
    close = difflib.get_close_matches(name, named, 1)
    hint = f"did you mean {close[0]}?" if close else f"known are: {', '.join(named)}" if named else "no pods are known; run: config"
    raise Mistake(f"{printable(name)}: no such pod; {hint}")


def reach(args: argparse.Namespace, transfer: bool = True) -> tuple[Place, Pod]:
    """The pod with its present address: the configuration is brought up to date first where there is a key."""
    place = find_place(args.ssh_config)
    if not args.offline and (read_key(args.key_file) or hosts_table(args) or not place.own.exists()):
        try:
            for note in update(place, args).notes:
                print(note, file=sys.stderr)
        except Mistake:
            raise
        except Failure as error:
            print(f"{error}; using the addresses of the last time", file=sys.stderr)
    pods, _ = read_back(read_own(place))
    alias, pod = find_pod(args.pod, place, pods)
    if not pod.host:
        raise Failure(f"{alias}: has {address(pod)}; start it first")
    if transfer and not pod.direct:
        raise Mistake(f"{alias}: only RunPod's proxy leads there, which carries a shell and no files; expose TCP port 22 on the pod")
    return place, pod


def child_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "RUNPOD_API_KEY"}


def run_child(command: list[str], keep: tuple[int, ...] = ()) -> int:
    """Run a command in the foreground and return its exit status; Ctrl-C and SIGTERM let it end first, then this program."""
    try:
        child = subprocess.Popen(command, env=child_environment(), pass_fds=keep)
    except FileNotFoundError:
        raise Mistake(f"{command[0]}: not found; install it (OpenSSH client, rsync)") from None
    received = []

    def on_signal(number: int, _: object) -> None:
        received.append(number)
        if number == signal.SIGTERM:  # the terminal sends Ctrl-C to the child as well
            child.terminate()

    previous = [(number, signal.signal(number, on_signal)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        status = child.wait()
    finally:
        for number, handler in previous:
            signal.signal(number, handler)
    if received:
        raise Interrupted(received[0])
    return status if status >= 0 else 128 - status


def explain(place: Place, pod: Pod, status: int) -> int:
    """After a failed connection, look once more for its reason and say it; returns 255 if ssh cannot connect, else ``status``."""
    if status not in (255, 12, 127):  # rsync reports a broken connection as 12 or 255
        return status
    probe = ["-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ControlPath=none", pod.key_alias, "command -v rsync"]
    done = subprocess.run([*place.ssh, *probe], stdin=subprocess.DEVNULL, capture_output=True, env=child_environment(), check=False)
    if b"HOST IDENTIFICATION HAS CHANGED" in done.stderr:
        reason = f"""shows another host key than before, so nothing was sent. If the pod was recreated, reset or its container disk
            wiped, this is expected; run: runpod_ssh_sync.py forget-host {pod.key_alias}. If not, somebody else may be answering there."""
    elif b"Permission denied" in done.stderr:
        reason = "does not accept your ssh key; add it to your account or the pod's PUBLIC_KEY (another key: config --identity PATH)"
    elif done.returncode not in (0, 255) and status != 255:
        reason = "has no rsync; run there: apt-get install -y rsync"
    else:
        return status
    print(f"error: {pod.key_alias}: {' '.join(reason.split())}", file=sys.stderr)
    return 255 if done.returncode == 255 else status


def remote_path(text: str) -> str:
    """A path for the remote shell and rsync, which both would interpret other characters."""
    if not re.fullmatch(r"[A-Za-z0-9_./~@+,=-]+", text) or text.startswith("-"):
        raise Mistake(f"{printable(text)}: a remote folder may have letters, digits and _ . / ~ @ + , = - only")
    return text.rstrip("/") or "/"


def rsync(place: Place, args: argparse.Namespace, excludes: list[str], extra: list[str]) -> list[str]:
    """The common part of both directions: no owners (the pod's root has no use for them), partial files kept aside."""
    command = ["rsync", "-rltO", "--executability", "--partial-dir=.rsync-partial", "--timeout=120", "-e", shlex.join(place.ssh)]
    command += [f"--exclude={pattern}" for pattern in excludes + args.exclude]
    command += ["--delete"] if args.delete else []
    command += ["--dry-run", "--itemize-changes"] if args.dry_run else ["--stats"] if args.stats else []
    return command + (["--progress"] if sys.stdout.isatty() else []) + extra


def push(place: Place, pod: Pod, args: argparse.Namespace, local: str | None, remote: str) -> int:
    source = Path(local).expanduser() if local else REPOSITORY
    if not local and not (source / "music_training").is_dir():
        raise Mistake(f"{source}: is not the repository; name the folder to push")
    if not source.is_dir():
        raise Mistake(f"{source}: no such folder")
    remote = remote_path(remote)
    print(f"{source} -> {pod.key_alias}:{remote}", flush=True)
    # Temporary files go into a folder of their own, which the pod's shell makes before and removes after a success.
    temporary = f"{remote}/.rsync-temp"
    script = f'receive() {{ rsync "$@" && rm -rf {temporary}; }}; mkdir -p {temporary} && receive'
    making = [] if args.dry_run else ["--temp-dir=.rsync-temp", f"--rsync-path={script}"]
    command = rsync(place, args, ["/.rsync-temp/"] + CODE_EXCLUDES + ([] if local else REPOSITORY_EXCLUDES), ["-z", *making])
    return explain(place, pod, run_child([*command, f"{os.path.abspath(source)}/", f"{pod.key_alias}:{remote}/"]))


def pull(place: Place, pod: Pod, args: argparse.Namespace, remote: str, local: str | None) -> int:
    """Receive into a folder of temporary files, which goes at the end: a killed transfer leaves no debris among the results."""
    target = Path(local or os.environ.get("MUSIC_OUTPUTS") or REPOSITORY / "outputs").expanduser().absolute()
    remote = remote_path(remote)
    print(f"{pod.key_alias}:{remote} -> {target}", flush=True)
    command = rsync(place, args, [*OUTPUT_EXCLUDES, "/.rsync-temp/"], [f"{pod.key_alias}:{remote}/", f"{target}/"])
    if args.dry_run:
        return explain(place, pod, run_child(command))
    temporary = target / ".rsync-temp"
    temporary.mkdir(parents=True, exist_ok=True)
    # rsync inherits the lock: also a transfer whose parent was killed is waited for.
    with locked(temporary / "lock", float("inf"), f"waiting for another transfer into {target}") as handle:
        temporary.mkdir(exist_ok=True)
        command[1:1] = [f"--temp-dir={temporary.name}"]
        status = run_child(command, (handle,))
        if status == 24:
            print("some files vanished on the pod while they were read (training goes on there?); the rest is here")
            status = 0
        if status == 0:
            shutil.rmtree(temporary, ignore_errors=True)
    return explain(place, pod, status)


def command_push(args: argparse.Namespace) -> int:
    place, pod = reach(args)
    return push(place, pod, args, args.local, args.remote)


def command_pull(args: argparse.Namespace) -> int:
    place, pod = reach(args)
    return pull(place, pod, args, args.remote, args.local)


def command_sync(args: argparse.Namespace) -> int:
    remote_outputs = remote_path(args.remote_outputs)
    place, pod = reach(args)
    status = push(place, pod, args, args.code, args.remote_code)
    if status:
        return status
    status = run_child([*place.ssh, pod.key_alias, f"test -d {remote_outputs}"])
    if status == 1:
        print(f"{pod.key_alias}:{remote_outputs}: nothing there yet to pull")
        return 0
    return explain(place, pod, status) if status else pull(place, pod, args, remote_outputs, args.outputs)


def command_run(args: argparse.Namespace) -> int:
    """The command runs in the pod's environment, which its start script leaves in /etc/rp_environment."""
    folder = f"cd {remote_path(args.folder)} && " if args.folder else ""
    place, pod = reach(args)
    line = "[ ! -r /etc/rp_environment ] || . /etc/rp_environment; " + folder + " ".join(args.command)
    return explain(place, pod, run_child([*place.ssh, *(["-t"] if sys.stdin.isatty() else []), pod.key_alias, line]))


def command_shell(args: argparse.Namespace) -> int:
    place, pod = reach(args, transfer=False)
    return explain(place, pod, run_child([*place.ssh, pod.key_alias]))


def command_tunnel(args: argparse.Namespace) -> int:
    pairs = [(args.jupyter, 8888, "JupyterLab"), (args.tensorboard, 6006, "TensorBoard")]
    pairs += [(*forward, f"port {forward[1]}") for forward in args.forward]
    for local, _, what in pairs:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", local))
            except OSError:
                option = "--" + what[:-3].lower() if what == "JupyterLab" else "--" + what.lower() if what == "TensorBoard" else "--forward"
                raise Mistake(f"local port {local} for {what} is in use; choose another with {option}") from None
    place, pod = reach(args)
    forwards = [word for local, remote, _ in pairs for word in ("-L", f"127.0.0.1:{local}:127.0.0.1:{remote}")]
    for local, remote, what in pairs:
        print(f"{what}: http://localhost:{local} -> port {remote} of {pod.key_alias}")
    print("Ctrl-C ends the tunnel", flush=True)
    status = run_child([*place.ssh, "-N", "-T", "-o", "ExitOnForwardFailure=yes", "-o", "ControlPath=none", *forwards, pod.key_alias])
    return explain(place, pod, status)


# The command line


class Parser(argparse.ArgumentParser):
    """Bad arguments are answered by one line."""

    def error(self, message: str) -> None:
        print(f"error: {printable(message)}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def port_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is no port (1-65535)")
    return int(text)


def port_pair(text: str) -> tuple[int, int]:
    local, _, remote = text.partition(":")
    return port_number(local), port_number(remote or local)


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.05 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is no time in seconds (0.05-86400)")
    return value


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="runpod_ssh_sync.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command_name", metavar="COMMAND", required=True)

    def add(name: str, function, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(function=function)
        command.add_argument("--ssh-config", metavar="PATH", help="instead of ~/.ssh/config")
        command.add_argument("--key-file", metavar="PATH", type=Path, help="API key (default: $RUNPOD_API_KEY, ~/.runpod/api_key)")
        command.add_argument("--hosts", metavar="FILE", help="other hosts (default: $RUNPOD_SSH_HOSTS, ~/.runpod/hosts.json)")
        command.add_argument("--timeout", metavar="S", type=seconds, default=15.0, help="how long to wait for the server (15)")
        return command

    def on_pod(name: str, function, text: str) -> argparse.ArgumentParser:
        command = add(name, function, text)
        command.add_argument("pod", help="name, alias or id")
        command.add_argument("--offline", action="store_true", help="use the addresses of the last time, ask no server")
        return command

    def transfer(name: str, function, text: str) -> argparse.ArgumentParser:
        command = on_pod(name, function, text)
        command.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help="rsync pattern to leave out (repeatable)")
        command.add_argument("--delete", action="store_true", help="also delete at the receiving end what the sender does not have")
        command.add_argument("--dry-run", action="store_true", help="list what would be sent")
        command.add_argument("--stats", action="store_true", help="rsync's figures at the end")
        return command

    config = add("config", command_config, "write the ssh configuration for all pods")
    config.add_argument("--identity", metavar="PATH", help="ssh key to log in with; remembered, 'none' forgets it")
    config.add_argument("--dry-run", action="store_true", help="say what would change, write nothing")
    config.add_argument("--diff", action="store_true", help="show what would change, write nothing")
    config.add_argument("--remove", action="store_true", help="take everything out again")
    config.add_argument("--prune", action="store_true", help="believe an empty list without confirmation")

    add("list", command_list, "show all pods").add_argument("--json", action="store_true", help="for programs")
    watch = add("watch", command_watch, "keep the configuration current until Ctrl-C")
    watch.add_argument("--interval", metavar="S", type=seconds, default=30.0, help="seconds between two looks (30)")

    command = transfer("push", command_push, "copy a folder's content to a pod")
    command.add_argument("local", nargs="?", help="folder (default: this repository)")
    command.add_argument("remote", nargs="?", default=REMOTE_CODE, help=f"folder on the pod ({REMOTE_CODE})")
    command = transfer("pull", command_pull, "copy a pod's folder here")
    command.add_argument("remote", nargs="?", default=REMOTE_OUTPUTS, help=f"folder on the pod ({REMOTE_OUTPUTS})")
    command.add_argument("local", nargs="?", help="folder (default: $MUSIC_OUTPUTS, outputs/ of this repository)")
    command = transfer("sync", command_sync, "push the code, then pull the outputs")
    command.add_argument("--code", metavar="DIR", help="local code (this repository)")
    command.add_argument("--remote-code", metavar="DIR", default=REMOTE_CODE, help=REMOTE_CODE)
    command.add_argument("--outputs", metavar="DIR", help="local outputs ($MUSIC_OUTPUTS, outputs/ of this repository)")
    command.add_argument("--remote-outputs", metavar="DIR", default=REMOTE_OUTPUTS, help=REMOTE_OUTPUTS)

    on_pod("shell", command_shell, "log in")
    command = on_pod("tunnel", command_tunnel, "forward JupyterLab and TensorBoard to this machine")
    command.add_argument("--jupyter", metavar="PORT", type=port_number, default=8888, help="local port for JupyterLab (8888)")
    command.add_argument("--tensorboard", metavar="PORT", type=port_number, default=6006, help="local port for TensorBoard (6006)")
    command.add_argument("--forward", metavar="PORT[:REMOTE]", type=port_pair, action="append", default=[], help="another port")
    command = on_pod("run", command_run, "run a command on a pod and return its exit status")
    command.add_argument("--folder", metavar="DIR", help=f"where to run it, for example {REMOTE_CODE}")
    command.add_argument("command", nargs="+", metavar="COMMAND", help="quoted, or after --")
    on_pod("forget-host", command_forget_host, "forget a pod's host key, after the pod was recreated")
    command = add("stop", command_stop, "stop a pod: the rent of its GPU ends, its volume stays")
    command.add_argument("pod", help="name, alias or id")
    command.add_argument("--dry-run", action="store_true", help="say what would be stopped, ask for nothing")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status and never shows a traceback for what lies outside the program."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    args = build_parser().parse_args(argv)
    try:
        status = args.function(args)
        sys.stdout.flush()
        return status
    except Failure as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt as interrupt:
        if args.function in (command_watch, command_tunnel):  # that is how they end
            return 0
        print("interrupted; the same command continues", file=sys.stderr)
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"error: {error.filename or 'operating system'}: {error.strerror or type(error).__name__}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
