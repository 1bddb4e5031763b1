"""Connecting to a real sshd by the pod's name: new ports, new host keys, commands, tunnels, watching."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from getpass import getuser

import pytest
from stand_ins import KEY, free_port, v2_pod


@pytest.fixture
def pod(laptop, sshd, api):
    """The sshd as the pod 'Deep House', known to the laptop."""
    api.pods = [v2_pod("abc123", "Deep House", sshd.port)]
    done = laptop.run("config", "--identity", sshd.identity)
    assert done.returncode == 0, done.stderr
    return sshd


def ssh(laptop, host, *command, **more):
    return subprocess.run(["ssh", "-F", laptop.config, host, *command], capture_output=True, text=True, stdin=subprocess.DEVNULL, **more)


def test_plain_ssh_reaches_the_pod_by_its_name_and_by_its_id(laptop, pod):
    for host in ("Deep-House", "runpod-abc123"):
        done = ssh(laptop, host, "echo $SSH_CONNECTION")
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[3] == str(pod.port)


def test_a_port_change_is_followed_without_a_question(laptop, pod, api):
    assert ssh(laptop, "Deep-House", "true").returncode == 0
    old = pod.port
    pod.restart()
    assert pod.port != old
    assert ssh(laptop, "Deep-House", "true").returncode == 255
    api.pods = [v2_pod("abc123", "Deep House", pod.port)]
    done = laptop.run("config")
    assert f"~ Deep-House: 127.0.0.1:{old} -> 127.0.0.1:{pod.port}" in done.stdout
    assert ssh(laptop, "Deep-House", "true").returncode == 0
    known = (laptop.home / ".ssh" / "known_hosts_runpod").read_text().splitlines()
    assert len({line.split()[0] for line in known}) == 1


def test_commands_on_a_pod_follow_a_port_change_by_themselves(laptop, pod, api):
    pod.restart()
    api.pods = [v2_pod("abc123", "Deep House", pod.port)]
    assert laptop.run("run", "Deep House", "echo hello").stdout == "hello\n"


def test_a_changed_host_key_is_refused_explained_and_forgotten_on_request(laptop, pod, api):
    assert laptop.run("run", "Deep-House", "true").returncode == 0
    pod.new_host_key()
    pod.restart()
    api.pods = [v2_pod("abc123", "Deep House", pod.port)]
    done = laptop.run("run", "Deep-House", "echo unsafe")
    assert done.returncode == 255 and "unsafe" not in done.stdout
    assert "forget-host runpod-abc123" in done.stderr and "another host key" in done.stderr
    transfer = laptop.run("pull", "Deep-House", pod.folder, laptop.home / "never")
    assert transfer.returncode == 255 and "forget-host runpod-abc123" in transfer.stderr
    assert "forgot the host key of runpod-abc123" in laptop.run("forget-host", "Deep-House").stdout
    assert laptop.run("run", "Deep-House", "echo safe").stdout == "safe\n"


def test_forget_host_touches_only_the_pod_that_was_named(laptop, pod, api):
    api.pods = [v2_pod("abc123", "a", pod.port), v2_pod("abc1234", "b", pod.port)]
    for name in ("a", "b"):
        assert laptop.run("run", name, "true").returncode == 0
    known_hosts = laptop.home / ".ssh" / "known_hosts_runpod"
    b = [line for line in known_hosts.read_text().splitlines() if subprocess_finds(line, "runpod-abc1234", laptop.home)]
    assert laptop.run("forget-host", "abc123").returncode == 0
    assert known_hosts.read_text().splitlines() == b
    assert not known_hosts.with_name("known_hosts_runpod.old").exists()
    assert "no host key of runpod-abc123 is known" in laptop.run("forget-host", "abc123").stdout
    assert laptop.run("forget-host", "vanished9").returncode == 0
    assert laptop.run("forget-host", "no such pod").returncode == 2


def subprocess_finds(line, host, folder) -> bool:
    (folder / "line").write_text(line + "\n")
    return subprocess.run(["ssh-keygen", "-F", host, "-f", folder / "line"], capture_output=True).returncode == 0


def test_run_passes_the_exit_status_the_folder_and_quotes(laptop, pod, tmp_path):
    assert laptop.run("run", "abc123", "exit 7").returncode == 7
    assert laptop.run("run", "abc123", "--folder", tmp_path, "pwd").stdout == f"{tmp_path}\n"
    assert laptop.run("run", "abc123", "echo 'a  b' \"$((1+2))\"").stdout == "a  b 3\n"
    assert laptop.run("run", "abc123", "--", "echo", "-n", "x").stdout == "x"
    assert laptop.run("run", "abc123", "--folder", "a;b", "pwd").returncode == 2


def test_the_api_key_reaches_neither_children_nor_the_output(laptop, pod, tmp_path):
    wrapper = tmp_path / "bin" / "ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\n{{ env; echo "$0 $@"; }} >> {tmp_path}/seen\nexec /usr/bin/ssh "$@"\n')
    wrapper.chmod(0o755)
    environment = {**os.environ, "PATH": f"{wrapper.parent}:{os.environ['PATH']}"}
    done = laptop.run("run", "abc123", "env", env=environment)
    assert done.returncode == 0 and "SSH_CONNECTION" in done.stdout
    seen = (tmp_path / "seen").read_text()
    assert "HOME=" in seen
    assert KEY not in seen + done.stdout + done.stderr
    assert not any(KEY.encode() in content for content in laptop.snapshot().values())


def test_shell_is_a_login_on_the_pod(laptop, pod):
    command = [sys.executable, sys.modules["runpod_ssh_sync"].__file__, "shell", "Deep House"]
    done = subprocess.run(command, input="echo $((40+2))\nexit 3\n", capture_output=True, text=True, timeout=30)
    assert "42" in done.stdout and done.returncode == 3


def test_the_tunnel_leads_to_jupyter_and_tensorboard(laptop, pod, api):
    remote, jupyter, tensorboard, extra = int(api.url.rpartition(":")[2]), free_port(), free_port(), free_port()
    words = ["tunnel", "Deep-House", "--jupyter", jupyter, "--tensorboard", tensorboard, "--forward", f"{extra}:{remote}"]
    process = laptop.start(*words)
    try:
        lines = [process.stdout.readline() for _ in range(4)]
        assert f"http://localhost:{jupyter} -> port 8888" in lines[0] and f"http://localhost:{tensorboard} -> port 6006" in lines[1]
        for _ in range(100):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{extra}/v2/pods", timeout=5) as answer:
                    assert b"Deep House" in answer.read()
                break
            except OSError:
                time.sleep(0.05)
        else:
            pytest.fail("the tunnel did not open")
        busy = laptop.run(*words)
        assert busy.returncode == 2 and f"local port {jupyter}" in busy.stderr and "--jupyter" in busy.stderr
    finally:
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(10) == 0


def test_watch_follows_ports_and_survives_a_failing_server(laptop, pod, api):
    process = laptop.start("watch", "--interval", "0.1")
    try:
        pod.restart()
        api.pods = [v2_pod("abc123", "Deep House", pod.port)]
        assert f"-> 127.0.0.1:{pod.port}" in process.stdout.readline()
        api.answers["/v2/pods"] = (500, b"boom")
        assert "stays as it is" in process.stdout.readline()
        del api.answers["/v2/pods"]
        api.pods.append(v2_pod("new1", "second", 4))
        assert "+ second: 127.0.0.1:4" in process.stdout.readline()
        assert laptop.effective("Deep-House")["port"] == str(pod.port)
    finally:
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(10) == 0


def test_a_refused_key_is_explained(laptop, pod):
    (pod.folder / "authorized_keys").write_text("")
    done = laptop.run("run", "Deep-House", "true")
    assert done.returncode == 255 and "does not accept your ssh key" in done.stderr


def test_a_failing_server_does_not_keep_from_connecting(laptop, pod, api):
    api.answers["/v2/pods"] = (500, b"boom")
    done = laptop.run("run", "Deep-House", "whoami")
    assert done.stdout.strip() == getuser() and "addresses of the last time" in done.stderr
    seen = len(api.seen)
    assert laptop.run("run", "Deep-House", "--offline", "true").returncode == 0
    assert len(api.seen) == seen


def test_pods_that_cannot_be_reached_say_why(laptop, api):
    proxied = v2_pod("viaproxy", "proxied", 5)
    proxied["ssh"]["direct"] = None
    api.pods = [v2_pod("stopped1", "asleep"), proxied, v2_pod("x1", "twin", 5), v2_pod("x2", "twin", 6)]
    assert laptop.run("config").returncode == 0
    stopped = laptop.run("run", "asleep", "true")
    assert stopped.returncode == 1 and "exited" in stopped.stderr and "start it" in stopped.stderr
    for words in (["push", "proxied", laptop.home], ["pull", "proxied"], ["run", "proxied", "true"], ["tunnel", "proxied"]):
        done = laptop.run(*words)
        assert done.returncode == 2 and "proxy" in done.stderr, words
    twin = laptop.run("run", "twin", "true")
    assert twin.returncode == 2 and "twin-x1 or twin-x2" in twin.stderr
    unknown = laptop.run("run", "aslep", "true")
    assert unknown.returncode == 2 and "did you mean asleep?" in unknown.stderr
