"""The configuration files: only our line comes in and goes out again, names do no harm, ssh itself is asked what it reads."""

import os
import re
import stat
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from stand_ins import TOOL, v2_pod

import runpod_ssh_sync as tool

HOSTILE = [
    "a\nHost *\n    ProxyCommand touch /tmp/x",
    "Host *",
    "*",
    "?",
    "!name",
    "ProxyCommand touch x",
    "-oProxyCommand=touch x",
    "--",
    "'; touch x; '",
    '"',
    'a "b" c',
    "%h",
    "${HOME}",
    "$(touch x)",
    "`x`",
    "a\rHost b",
    "a\x00b",
    "a\x1b[2Jb",
    "a\u2028Host *",
    "\u202egnp",
    "音楽",
    "Über–Pod",
    "x" * 300,
    "\n" * 300,
    "é" * 300,
    "# pod {}",
    "Match all",
    "github.com",
    "10.0.0.1",
    "localhost",
    "",
    " ",
    "runpod-other",
    "runpod-id0",
    "a,b",
    "a=b",
]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# What ssh makes of it


def test_ssh_reads_every_option_that_we_write(laptop, api, tmp_path):
    identity = tmp_path / "my key"
    api.pods = [v2_pod("abc", "Deep House", 40022, "192.0.2.4", "trainer"), v2_pod("six", "six", 9, "2001:db8::7")]
    assert tool.main(["config", "--identity", str(identity)]) == 0
    expected = {
        "hostname": "192.0.2.4",
        "port": "40022",
        "user": "trainer",
        "hostkeyalias": "runpod-abc",
        "userknownhostsfile": str(laptop.home / ".ssh" / "known_hosts_runpod"),
        "stricthostkeychecking": "accept-new",
        "checkhostip": "no",
        "identityfile": str(identity),
        "identitiesonly": "yes",
        "connecttimeout": "20",
        "serveraliveinterval": "30",
        "serveralivecountmax": "4",
    }
    for host in ("Deep-House", "runpod-abc"):
        options = laptop.effective(host)
        assert {name: options.get(name) for name in expected} == expected
    assert laptop.effective("six")["hostname"] == "2001:db8::7"
    written = set(re.findall(r"^    (\w+) ", laptop.own.read_text(), re.MULTILINE))
    assert {name.lower() for name in written} == set(expected), "an option is written that this test does not check"


def test_a_proxied_pod_gets_a_terminal_and_keeps_the_proxys_host_key(laptop, api):
    pod = v2_pod("abc", "far", 1)
    pod["ssh"]["direct"] = None
    api.pods = [pod]
    assert tool.main(["config"]) == 0
    options = laptop.effective("far")
    assert (options["hostname"], options["user"], options["requesttty"]) == ("ssh.runpod.io", "abc-6441", "true")
    assert "hostkeyalias" not in options and options["stricthostkeychecking"] == "accept-new"


def test_our_block_wins_over_the_persons_defaults_and_changes_no_other_host(laptop, api):
    laptop.config.parent.mkdir()
    laptop.config.write_text("Port 2200\nHost *\n  User me\n  StrictHostKeyChecking no\nHost work\n  HostName work.example\n")
    before = {host: laptop.effective(host) for host in ("work", "other", "github.com")}
    api.pods = [v2_pod("abc", "pod", 40022, user="root"), v2_pod("def", "work", 5)]
    assert tool.main(["config"]) == 0
    options = laptop.effective("pod")
    assert (options["port"], options["user"], options["stricthostkeychecking"]) == ("40022", "root", "accept-new")
    assert {host: laptop.effective(host) for host in before} == before
    assert laptop.effective("work-def")["port"] == "5"


def assert_harmless(text: str, count: int) -> list[str]:
    """The file holds only our options and safe, different patterns, which are returned."""
    assert text.isascii() and max(map(len, text.splitlines())) < 1000
    assert set(re.findall(r"^[ ]*(\w+)", text, re.MULTILINE)) <= {
        *("Host", "HostName", "Port", "User", "HostKeyAlias", "UserKnownHostsFile", "StrictHostKeyChecking", "CheckHostIP"),
        *("IdentitiesOnly", "ConnectTimeout", "ServerAliveInterval", "ServerAliveCountMax"),
    }
    hosts = re.findall(r"^Host (.*)", text, re.MULTILINE)
    patterns = [word for line in hosts for word in line.split()]
    assert len(hosts) == count and len(patterns) == len(set(patterns))
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", word) for word in patterns)
    return patterns


@pytest.mark.parametrize("index", range(len(HOSTILE)))
def test_a_hostile_name_is_harmless(index):
    pods = tool.parse_pods({"pods": [v2_pod("id0", HOSTILE[index], 2201), v2_pod("other", "tame", 2202)]})
    assert {"runpod-id0", "runpod-other", "tame"} <= set(assert_harmless(tool.render(tool.aliases(pods, set()), "", "~/known"), 2))


def test_ssh_finds_every_pod_among_all_hostile_names_and_nothing_else_changes(laptop, api):
    laptop.config.parent.mkdir()
    laptop.config.write_text("")
    before = {host: laptop.effective(host) for host in ("github.com", "localhost", "10.0.0.1", "anything")}
    api.pods = [v2_pod(f"id{number}", name, 2000 + number) for number, name in enumerate(HOSTILE)]
    assert tool.main(["config"]) == 0
    assert_harmless(laptop.own.read_text(), len(HOSTILE))
    assert {host: laptop.effective(host) for host in before} == before
    for alias, pod in tool.aliases(tool.parse_pods({"pods": api.pods}), set()).items():
        options = laptop.effective(alias)
        assert options["port"] == str(pod.port) and "proxycommand" not in options and options["hostkeyalias"] == pod.key_alias


@given(
    st.lists(st.tuples(st.from_regex(tool._ID, fullmatch=True), st.text() | st.sampled_from(HOSTILE)), max_size=6),
    st.sets(st.text(max_size=5)),
)
def test_every_pod_has_an_alias_of_its_own(rows, taken):
    pods = tool.parse_pods({"pods": [v2_pod(id, name, 22) for id, name in rows]})
    named = tool.aliases(pods, taken)
    assert {pod.id.lower() for pod in named.values()} == {id.lower() for id, _ in rows} and len(named) == len(pods)
    words = [word for alias, pod in named.items() for word in {alias, pod.key_alias}]
    assert len(words) == len(set(words))
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", word) for word in words)
    assert not {alias for alias, pod in named.items() if alias != pod.key_alias} & taken
    assert tool.aliases(pods[::-1], taken) == named


def test_duplicate_names_all_get_their_id():
    pods = tool.parse_pods({"pods": [v2_pod("x1", "twin", 1), v2_pod("x2", "Twin", 2), v2_pod("x3", "single", 3)]})
    assert list(tool.aliases(pods, set())) == ["Twin-x2", "single", "twin-x1"]


# One line in, one line out

config_lines = st.sampled_from(
    [
        *(b"Host a b", b"  HostName x", b"Match all", b"\tPort 22", b"# comment", b"", b"   ", b"Include other", b"Host=z", b'"Host" q'),
        *(b"Include config.d/*", b"Include ~/.ssh/config.d/runpod", b"hostname h", b"User \xff\xfe", b"Include x # note", b"MATCH host y"),
    ]
)
configs = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda lines, end, last: end.join(lines) + last * end,
        st.lists(config_lines, max_size=12),
        st.sampled_from([b"\n", b"\r\n", b"\r"]),
        st.integers(0, 2),
    ),
)


@settings(max_examples=400)
@given(st.none() | configs)
@example(None)
@example(b"")
@example(b"\n")
@example(b"Host a\r\n  Port 1")
def test_any_configuration_is_unchanged_but_for_one_line(config):
    with_line = tool.with_include(config, "~/.ssh/config.d/runpod")
    ours = [line for line in with_line.split(b"\n") if line.startswith(b"Include ~/.ssh/config.d/runpod # runpod_ssh_sync.py")]
    assert len(ours) == 1
    assert with_line.replace(ours[0] + b"\n", b"", 1) == (config or b"")
    assert with_line.startswith(ours[0])
    assert tool.with_include(with_line, "~/.ssh/config.d/runpod") == with_line
    assert tool.without_include(with_line) == config
    assert tool.without_include(tool.with_include(with_line, "/moved/runpod")) == config


@given(configs, configs)
def test_what_the_person_adds_later_stays(above, below):
    ours = tool.with_include(None, "~/x")
    mixed = above + b"\n" + ours + below
    moved = tool.with_include(mixed, "~/x")
    assert tool.without_include(moved) == above + b"\n" + below or (not above and not below)
    position = moved.index(tool.MARK)
    block = tool._FIRST_BLOCK.search(moved)
    assert block is None or position < block.start()
    assert tool.with_include(moved, "~/x") == moved


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(config=st.none() | configs)
def test_files_come_back_byte_by_byte(laptop, api, config):
    api.pods = [v2_pod("abc", "pod", 22)]
    with tempfile.TemporaryDirectory() as folder:
        main = Path(folder) / "config"
        if config is not None:
            main.write_bytes(config)
        option = ["--ssh-config", str(main)]
        assert tool.main(["config", *option]) == 0
        first = {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
        assert tool.main(["config", *option]) == 0
        assert {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()} == first
        assert tool.main(["config", "--remove", *option]) == 0
        left = {path.name: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
        left.pop(".runpod_ssh_sync.lock")
        assert left == ({} if config is None else {"config": config})


def test_a_line_that_slipped_below_a_host_block_moves_up(laptop, api):
    api.pods = [v2_pod("abc", "pod", 40022)]
    assert tool.main(["config"]) == 0
    ours = laptop.config.read_bytes()
    laptop.config.write_bytes(b"# mine\nHost other\n  Port 3\n" + ours)
    assert laptop.effective("pod")["port"] == "22"
    assert tool.main(["config"]) == 0
    assert laptop.config.read_bytes() == ours + b"# mine\nHost other\n  Port 3\n"
    assert laptop.effective("pod")["port"] == "40022" and laptop.effective("other")["port"] == "3"
    laptop.config.write_bytes(b"# mine\n" + ours + b"Host other\n")
    before = laptop.snapshot()
    assert tool.main(["config"]) == 0
    assert laptop.snapshot() == before


def test_windows_line_ends_and_a_missing_last_one(laptop, api):
    laptop.config.parent.mkdir()
    original = b"Host other\r\n  Port 3\r\nHost last\r\n  Port 4"
    laptop.config.write_bytes(original)
    api.pods = [v2_pod("abc", "pod", 40022)]
    assert tool.main(["config"]) == 0
    assert laptop.config.read_bytes().split(b"\r\n", 1)[1] == original
    assert [laptop.effective(host)["port"] for host in ("pod", "other", "last")] == ["40022", "3", "4"]


# Files, links, rights, locks


def test_a_linked_configuration_stays_a_link(laptop, api):
    target = laptop.home / "dotfiles" / "ssh-config"
    target.parent.mkdir()
    target.write_text("Host mine\n")
    target.chmod(0o640)
    laptop.config.parent.mkdir()
    laptop.config.symlink_to("../dotfiles/ssh-config")
    api.pods = [v2_pod("abc", "pod", 22)]
    assert tool.main(["config"]) == 0
    assert laptop.config.is_symlink() and os.readlink(laptop.config) == "../dotfiles/ssh-config"
    assert target.read_text().endswith("Host mine\n") and "Include" in target.read_text()
    assert mode(target) == 0o640 and [path.name for path in target.parent.iterdir()] == ["ssh-config"]
    assert tool.main(["config", "--remove"]) == 0
    assert laptop.config.is_symlink() and target.read_text() == "Host mine\n"


def test_rights_are_private(laptop, api):
    api.pods = [v2_pod("abc", "pod", 22)]
    previous = os.umask(0)
    try:
        assert tool.main(["config"]) == 0
    finally:
        os.umask(previous)
    assert mode(laptop.config.parent) == mode(laptop.own.parent) == 0o700
    assert mode(laptop.config) == mode(laptop.own) == 0o600
    laptop.own.chmod(0o644)
    api.pods = [v2_pod("abc", "pod", 23)]
    assert tool.main(["config"]) == 0
    assert mode(laptop.own) == 0o600


def test_one_backup_of_the_configuration_without_our_line(laptop, api):
    laptop.config.parent.mkdir()
    laptop.config.write_text("Host mine\n")
    backup = laptop.config.with_name("config.before-runpod")
    for port in (1, 2, 3):
        api.pods = [v2_pod("abc", "pod", port)]
        assert tool.main(["config"]) == 0
        assert backup.read_text() == "Host mine\n" and mode(backup) == 0o600
        with open(laptop.config, "a") as file:
            file.write("# more\n")
    assert sorted(path.name for path in laptop.config.parent.iterdir()) == [
        ".runpod_ssh_sync.lock",
        "config",
        "config.before-runpod",
        "config.d",
    ]


def test_a_rerun_writes_nothing(laptop, api, capsys):
    api.pods = [v2_pod("abc", "pod", 22)]
    assert tool.main(["config"]) == 0
    inodes = [laptop.config.stat(), laptop.own.stat()]
    assert tool.main(["config"]) == 0
    assert "up to date" in capsys.readouterr().out
    assert [laptop.config.stat(), laptop.own.stat()] == inodes


def test_the_identity_is_remembered(laptop, api):
    api.pods = [v2_pod("abc", "pod", 22)]
    assert tool.main(["config", "--identity", "~/keys/pod"]) == 0
    assert tool.main(["config"]) == 0
    assert laptop.effective("pod")["identityfile"] == str(laptop.home / "keys" / "pod")
    assert tool.main(["config", "--identity", "none"]) == 0
    assert "IdentityFile" not in laptop.own.read_text()


@pytest.mark.parametrize("words", [["--dry-run"], ["--diff"], ["--dry-run", "--diff"]])
def test_looking_writes_nothing(laptop, api, capsys, words):
    api.pods = [v2_pod("abc", "pod", 40022)]
    assert tool.main(["config", *words]) == 0
    said = capsys.readouterr().out
    assert f"would create {laptop.own}" in said and ("+    Port 40022" in said) == ("--diff" in words)
    assert not (laptop.home / ".ssh").exists()
    assert tool.main(["config"]) == 0
    before = laptop.snapshot()
    api.pods = [v2_pod("abc", "pod", 40023)]
    assert tool.main(["config", *words]) == 0
    assert tool.main(["config", "--remove", *words]) == 0
    assert laptop.snapshot() == before
    assert ("-    Port 40022" in capsys.readouterr().out) == ("--diff" in words)


def test_somebody_elses_file_is_not_overwritten(laptop, api, capsys):
    laptop.own.parent.mkdir(parents=True)
    laptop.own.write_text("Host mine\n")
    for words in (["config"], ["config", "--remove"]):
        assert tool.main(words) == 2
        assert "not written by this tool" in capsys.readouterr().err
    assert laptop.snapshot() == {".ssh/config.d/runpod": b"Host mine\n"}


def test_remove_leaves_other_files_and_host_keys(laptop, api, capsys):
    api.pods = [v2_pod("abc", "pod", 22)]
    assert tool.main(["config", "--remove"]) == 0
    assert tool.main(["config"]) == 0
    (laptop.own.parent / "work").write_text("Host work\n")
    (laptop.config.parent / "known_hosts_runpod").write_text("")
    assert tool.main(["config", "--remove"]) == 0
    assert set(laptop.snapshot()) == {".ssh/config.d/work", ".ssh/known_hosts_runpod"}
    assert "kept" in capsys.readouterr().out
    assert tool.main(["config", "--remove"]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_concurrent_runs_leave_one_whole_configuration(laptop, api):
    laptop.config.parent.mkdir()
    laptop.config.write_text("Host mine\n")
    api.pods = [v2_pod(f"id{number}", f"pod{number}", number + 1) for number in range(50)]
    api.delay = 0.05
    processes = [laptop.start("config") for _ in range(8)]
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 8
    assert sum("written" in text for text in said) == 1 and sum("up to date" in text for text in said) == 7
    assert laptop.config.read_text().count("Include") == 1
    assert len(tool.read_back(laptop.own.read_text())[0]) == 50
    assert not [path for path in laptop.config.parent.rglob("*.tmp")]


def test_a_held_lock_is_a_failure_in_time(laptop, api, monkeypatch, capsys):
    assert tool.main(["config"]) == 0
    monkeypatch.setattr(tool, "LOCK_PATIENCE", 0.1)
    with tool.configuration_lock(tool.find_place(None)):
        assert tool.main(["config"]) == 1
    assert "another run" in capsys.readouterr().err


def test_a_place_with_spaces_works_and_one_that_ssh_cannot_take_is_refused(laptop, api, tmp_path, capsys):
    api.pods = [v2_pod("abc", "pod", 40022)]
    folder = tmp_path / "my ssh"
    folder.mkdir()
    assert tool.main(["config", "--ssh-config", str(folder / "config")]) == 0
    done = subprocess.run(["ssh", "-G", "-F", folder / "config", "pod"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert "port 40022" in done.stdout and f"userknownhostsfile {folder}/known_hosts_runpod" in done.stdout
    for name in ('a"b', "a*b", "a%b", "a$b", "a[b"):
        assert tool.main(["config", "--ssh-config", str(tmp_path / name / "config")]) == 2
    assert capsys.readouterr().err.count("\n") == 5


def test_a_home_other_than_the_user_databases_is_written_out(laptop, api, monkeypatch):
    """ssh resolves ``~`` by the user database in most places and by $HOME in an Include."""
    entry = lambda home: lambda _: SimpleNamespace(pw_dir=str(home))  # noqa: E731
    monkeypatch.setattr(tool.pwd, "getpwuid", entry(laptop.home.parent))
    assert tool.config_path(laptop.own) == str(laptop.own)
    api.pods = [v2_pod("abc", "house", 40022, user="trainer")]
    assert tool.main(["config"]) == 0
    assert laptop.effective("runpod-abc")["port"] == "40022"
    monkeypatch.setattr(tool.pwd, "getpwuid", entry(laptop.home))
    assert tool.config_path(laptop.own) == "~/.ssh/config.d/runpod"


def test_an_unwritable_place_is_one_line(laptop, api, capsys):
    (laptop.home / ".ssh").write_text("a file")
    assert tool.main(["config"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1


# The command line


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["confg"],
        ["config", "--no"],
        ["push"],
        ["run", "pod"],
        ["watch", "--interval", "x"],
        ["watch", "--interval", "nan"],
        ["list", "--timeout", "0"],
        ["tunnel", "p", "--jupyter", "70000"],
        ["tunnel", "p", "--forward", "1:x"],
        ["pull", "a", "b", "c", "d\ne"],
    ],
)
def test_bad_arguments_are_one_line(laptop, capsys, words):
    with pytest.raises(SystemExit) as end:
        tool.main(words)
    assert end.value.code == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and not said.out


def test_help_needs_nothing_and_the_file_is_plain_python_3_9():
    import ast
    import sys

    source = TOOL.read_text()
    tree = ast.parse(source, feature_version=(3, 9))
    modules = {alias.name.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert modules <= set(sys.stdlib_module_names)
    done = subprocess.run([sys.executable, "-I", "-S", TOOL, "--help"], capture_output=True, text=True, env={"PATH": ""})
    assert done.returncode == 0 and "forget-host" in done.stdout
