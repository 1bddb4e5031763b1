"""What the API answers, and what becomes of it: three forms, failures that change nothing, the key that stays secret."""

import json
import random
import time
import urllib.request

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins import KEY, free_port, v2_pod

import runpod_ssh_sync as tool

V1 = [
    {"id": "a1", "name": "one", "desiredStatus": "RUNNING", "publicIp": "192.0.2.1", "portMappings": {"22": 10022, "8888": 1}},
    {"id": "a2", "name": "two", "desiredStatus": "EXITED", "publicIp": "", "portMappings": None},
    {"id": "a3", "name": "three", "desiredStatus": "TERMINATED", "publicIp": None, "portMappings": None},
]


def graphql_port(private: int, public: int, is_public: bool = True) -> dict:
    return {"ip": "192.0.2.1" if is_public else "10.0.0.1", "isIpPublic": is_public, "privatePort": private, "publicPort": public}


GRAPHQL_PODS = [
    {
        "id": "a1",
        "name": "one",
        "desiredStatus": "RUNNING",
        "machine": {"podHostId": "a1-64"},
        "runtime": {"ports": [graphql_port(8888, 60000, False), graphql_port(22, 4, False), graphql_port(22, 10022)]},
    },
    {"id": "a2", "name": "two", "desiredStatus": "EXITED", "machine": {"podHostId": "a2-64"}, "runtime": None},
]


def graphql(pods: object) -> dict:
    return {"data": {"myself": {"pods": pods}}}


def test_three_generations_of_answers_say_the_same():
    expected = [tool.Pod("a1", "one", "RUNNING", "192.0.2.1", 10022), tool.Pod("a2", "two", "EXITED")]
    v2 = {"pods": [v2_pod("a1", "one", 10022, "192.0.2.1", "root"), v2_pod("a2", "two")]}
    assert tool.parse_pods(v2) == tool.parse_pods(V1) == tool.parse_pods(graphql(GRAPHQL_PODS)) == expected


def test_a_pod_without_a_public_port_is_reached_through_the_proxy():
    v2 = v2_pod("a1", "one", 1)
    v2["ssh"]["direct"] = None
    inside = {**GRAPHQL_PODS[0], "runtime": {"ports": [graphql_port(8888, 60000, False)]}}
    for document, user in (({"pods": [v2]}, "a1-6441"), (graphql([inside]), "a1-64")):
        (pod,) = tool.parse_pods(document)
        assert (pod.host, pod.port, pod.user, pod.direct) == ("ssh.runpod.io", 22, user, False)


@pytest.mark.parametrize(
    "change",
    [
        {"host": "1.2.3.4\nProxyCommand touch x"},
        {"host": "-oProxyCommand=x"},
        {"host": "a b"},
        {"host": 7},
        {"host": ""},
        {"host": "%h"},
        {"port": 0},
        {"port": 65536},
        {"port": True},
        {"port": "22\n"},
        {"port": 22.5},
        {"port": None},
        {"username": "root\nHost *"},
        {"username": "-l"},
        {"username": ""},
        {"username": ["root"]},
    ],
)
def test_an_address_that_is_not_one_counts_as_none(change):
    row = v2_pod("a1", "one", 22)
    row["ssh"]["direct"].update(change)
    row["ssh"]["proxy"] = None
    (pod,) = tool.parse_pods({"pods": [row]})
    assert pod.host == ""


def test_pods_with_unusable_ids_and_repeated_ones_are_left_out():
    rows = [v2_pod(id, "x", 1) for id in ("ok", "ok", "", "a\nHost *", "-x", "a b", "é", "x" * 65)]
    assert [pod.id for pod in tool.parse_pods({"pods": rows})] == ["ok"]


NAMES = ["pods", "id", "name", "status", "ssh", "direct", "proxy", "host", "port", "username", "publicIp", "portMappings", "22"]
NAMES += ["data", "myself", "runtime", "ports", "privatePort"]
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=25,
)


@given(json_values)
def test_no_answer_can_cause_anything_but_pods_or_a_failure(document):
    try:
        pods = tool.parse_pods(document)
    except tool.Failure:
        return
    text = tool.render(tool.aliases(pods, set()), "", "~/known")
    assert tool.read_back(text)[0] == list(tool.aliases(pods, set()).values())


# Over HTTP


def failures() -> list:
    forms = [b"", b"{", b"<html>busy</html>", b"null", b"[1]", b"{}", b'{"pods": null}', b'{"pods": {"id": "a"}}', b'{"pods": [{"id": 5}]}']
    forms += [b"[" * 100_000, b"\xff\xfe", b'{"errors": [{"message": "no"}], "data": null}', graphql(None), {"data": None}]
    return [(200, form) for form in forms] + [(status, {"pods": []}) for status in (301, 302, 400, 401, 403, 429, 500, 502, 503)]


@pytest.mark.parametrize("answer", failures(), ids=lambda answer: f"{answer[0]}-{str(answer[1])[:24]}")
def test_a_failing_server_leaves_the_configuration_as_it_was(laptop, api, answer, capsys):
    laptop.config.parent.mkdir()
    laptop.config.write_text("Host mine\n  Port 7\n")
    api.pods = [v2_pod("a1", "one", 22)]
    assert tool.main(["config"]) == 0
    before = laptop.snapshot()
    api.answers["/v2/pods"] = answer
    for words in (["config"], ["config", "--prune"], ["list"], ["config", "--diff"]):
        capsys.readouterr()
        assert tool.main(words) == 1
        said = capsys.readouterr()
        assert said.err.startswith("error: ") and said.err.count("\n") == 1 and not said.out
    assert laptop.snapshot() == before
    assert len({authorization for _, _, authorization in api.seen}) == 1


def test_no_answer_in_time_and_no_server_leave_the_configuration_as_it_was(laptop, api, capsys, monkeypatch):
    api.pods = [v2_pod("a1", "one", 22)]
    assert tool.main(["config"]) == 0
    before = laptop.snapshot()
    api.delay = 1.5
    began = time.monotonic()
    assert tool.main(["config", "--timeout", "0.2"]) == 1
    assert time.monotonic() - began < 1.4
    assert "within 0.2 s" in capsys.readouterr().err
    monkeypatch.setenv("RUNPOD_API_URL", f"http://127.0.0.1:{free_port()}")
    assert tool.main(["config"]) == 1
    assert "cannot be reached" in capsys.readouterr().err
    assert laptop.snapshot() == before


def test_an_empty_list_prunes_only_when_a_second_interface_agrees(laptop, api, capsys):
    api.pods = [v2_pod("a1", "one", 22)]
    assert tool.main(["config"]) == 0
    before = laptop.snapshot()
    api.pods = []
    for second in ((404, {}), (500, {}), (200, graphql(GRAPHQL_PODS)), (200, {"data": {"myself": None}})):
        api.answers["/graphql"] = second
        assert tool.main(["config"]) == 0
        assert "1 stay" in capsys.readouterr().out
        assert laptop.snapshot() == before
    api.answers["/graphql"] = (200, graphql([]))
    assert tool.main(["config"]) == 0
    assert "- one (a1) is gone" in capsys.readouterr().out
    assert laptop.effective("one")["hostname"] == "one"


def test_an_empty_list_prunes_when_told_to_and_some_pods_less_is_no_question(laptop, api):
    api.pods = [v2_pod("a1", "one", 21), v2_pod("a2", "two", 22)]
    assert tool.main(["config"]) == 0
    api.pods = api.pods[1:]
    assert tool.main(["config"]) == 0
    assert laptop.effective("one")["hostname"] == "one" and laptop.effective("two")["port"] == "22"
    api.pods = []
    assert tool.main(["config", "--prune"]) == 0
    assert "Host " not in laptop.own.read_text()


def test_older_interfaces_are_asked_where_v2_is_missing(laptop, api):
    api.answers["/v2/pods"] = (404, {})
    api.answers["/v1/pods"] = (200, V1)
    assert tool.main(["config"]) == 0
    assert laptop.effective("one")["port"] == "10022"
    del api.answers["/v1/pods"]
    api.answers["/graphql"] = (200, graphql([{**GRAPHQL_PODS[0], "name": "new"}]))
    assert tool.main(["config"]) == 0
    assert laptop.effective("new")["port"] == "10022"
    assert [path for _, path, _ in api.seen] == ["/v2/pods", "/v1/pods", "/v2/pods", "/v1/pods", "/graphql"]


def test_a_server_without_any_interface_is_a_failure(laptop, api, capsys):
    api.answers["/v2/pods"] = (404, {})
    assert tool.main(["list"]) == 1
    assert "RUNPOD_API_URL" in capsys.readouterr().err


def test_redirects_do_not_carry_the_key_away(laptop, api, capsys):
    api.answers["/v2/pods"] = (302, f"{api.url}/elsewhere".encode())
    assert tool.main(["list"]) == 1
    assert [path for _, path, _ in api.seen] == ["/v2/pods"]


def test_without_a_url_the_provider_is_asked_over_https(monkeypatch):
    asked = []

    def refuse(self, request, timeout):
        asked.append((request.full_url, request.get_method(), timeout))
        raise urllib.request.HTTPError(request.full_url, 404, "", {}, None)

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", refuse)
    with pytest.raises(tool.Failure):
        tool.Server(tool.DEFAULT_SERVER, "k", 3.0).pods()
    assert asked == [
        ("https://api.runpod.io/v2/pods", "GET", 3.0),
        ("https://rest.runpod.io/v1/pods", "GET", 3.0),
        ("https://api.runpod.io/graphql", "POST", 3.0),
    ]


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "ftp://localhost",
        "https://",
        "example.com",
        "https://u:p@h",
        "https://h?x=1",
        "https://h:99999",
        "http://h\n",
        "x" * 9,
    ],
)
def test_a_bad_server_address_is_one_line(laptop, monkeypatch, capsys, url):
    monkeypatch.setenv("RUNPOD_API_URL", url)
    assert tool.main(["config"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: RUNPOD_API_URL") and said.count("\n") == 1
    assert not laptop.config.exists()


def test_a_certificate_nobody_vouches_for_is_refused(laptop, monkeypatch, capsys, tmp_path):
    import ssl
    import subprocess
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    names = ["-keyout", tmp_path / "key", "-out", tmp_path / "cert", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.handle_error = lambda *_: None
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setenv("RUNPOD_API_URL", f"https://localhost:{server.server_port}")
    try:
        assert tool.main(["list"]) == 1
    finally:
        server.shutdown()
        server.server_close()
    assert "certificate is not trusted" in capsys.readouterr().err


# The key


def test_the_key_comes_from_a_private_file(laptop, api, monkeypatch, capsys):
    monkeypatch.delenv("RUNPOD_API_KEY")
    api.pods = [v2_pod("a1", "one", 22)]
    assert tool.main(["list"]) == 2
    assert "RUNPOD_API_KEY" in capsys.readouterr().err
    file = laptop.home / ".runpod" / "api_key"
    file.parent.mkdir()
    file.write_text(f"{KEY}\n")
    for mode in (0o644, 0o640, 0o604, 0o660):
        file.chmod(mode)
        for words in (["list"], ["list", "--key-file", str(file)], ["run", "one", "true"]):
            assert tool.main(words) == 2
            said = capsys.readouterr().err
            assert "chmod 600" in said and said.count("\n") == 1 and KEY not in said
    assert not api.seen
    file.chmod(0o600)
    assert tool.main(["list"]) == 0
    assert api.seen == [("GET", "/v2/pods", f"Bearer {KEY}")]
    assert tool.main(["list", "--key-file", str(file.with_name("other"))]) == 2


@pytest.mark.parametrize("key", ["two words", "first\nbreak: x", "Schlüssel", "nul\x01"])
def test_an_unusable_key_is_not_quoted(laptop, monkeypatch, capsys, key):
    monkeypatch.setenv("RUNPOD_API_KEY", key)
    assert tool.main(["list"]) == 2
    said = capsys.readouterr()
    assert "no usable API key" in said.err and key not in said.err


@pytest.mark.parametrize("status", [200, 401, 404, 500])
def test_a_server_that_echoes_the_key_does_not_get_it_printed(laptop, api, capsys, status):
    api.answers["/v2/pods"] = api.answers["/v1/pods"] = api.answers["/graphql"] = (status, f"bad key {KEY}".encode())
    assert tool.main(["list"]) == 1
    said = capsys.readouterr()
    assert KEY not in said.out + said.err


# Listing, and other providers


def test_list_shows_every_pod_and_writes_nothing(laptop, api, capsys):
    api.pods = [v2_pod("a1", "Deep \x1b[31mHouse\n", 22, "192.0.2.9"), v2_pod("a2", "asleep")]
    assert tool.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["alias", "name", "id", "state", "address"]
    assert "192.0.2.9:22" in lines[1] and "\x1b" not in lines[1] and len(lines) == 3
    assert "no address (exited)" in lines[2]
    assert not (laptop.home / ".ssh").exists()
    assert tool.main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["id"], row["port"]) for row in rows] == [("a1", 22), ("a2", 22)]


def test_the_order_of_the_answer_does_not_matter(laptop, api):
    api.pods = [v2_pod(f"id{number}", f"pod {number % 5}", number + 1) for number in range(20)]
    assert tool.main(["config"]) == 0
    before = laptop.snapshot()
    random.Random(0).shuffle(api.pods)
    assert tool.main(["config"]) == 0
    assert laptop.snapshot() == before


def test_hosts_of_other_providers_need_no_key(laptop, api, monkeypatch, capsys):
    file = laptop.home / ".runpod" / "hosts.json"
    file.parent.mkdir()
    file.write_text('{"hosts": [{"name": "Lab A", "host": "203.0.113.7", "port": 2222, "user": "ubuntu", "identity": "~/lab key"}]}')
    api.pods = [v2_pod("a1", "one", 22)]
    assert tool.main(["config"]) == 0
    both = laptop.snapshot()
    options = laptop.effective("Lab-A")
    assert (options["hostname"], options["port"], options["user"]) == ("203.0.113.7", "2222", "ubuntu")
    assert options["hostkeyalias"] == "host-lab-a" and options["identityfile"] == str(laptop.home / "lab key")
    monkeypatch.delenv("RUNPOD_API_KEY")
    assert tool.main(["config"]) == 0
    assert laptop.snapshot() == both
    assert "only the hosts table was read" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content, message",
    [
        ("[]", "expected"),
        ("{", "not JSON"),
        ('{"hosts": [5]}', "host 1: expected an object"),
        ('{"hosts": [{"name": "a", "host": "h", "prot": 1}]}', "unknown key 'prot'"),
        ('{"hosts": [{"name": "a"}]}', "host 1 (a)"),
        ('{"hosts": [{"name": "a", "host": "h", "port": 70000}]}', "1-65535"),
        ('{"hosts": [{"name": "a", "host": "h"}, {"name": "a", "host": "i"}]}', "host 2: name 'a' is used twice"),
        ('{"hosts": [{"name": "?", "host": "h"}]}', "no letter or digit"),
        ('{"hosts": [{"name": "a", "host": "h", "identity": "x\\nProxyCommand y"}]}', "configuration file"),
    ],
)
def test_a_wrong_hosts_table_is_one_line(laptop, capsys, tmp_path, content, message):
    file = tmp_path / "hosts.json"
    file.write_text(content)
    assert tool.main(["config", "--hosts", str(file)]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


# Stopping


def test_stop_asks_the_newest_interface_and_only_once(laptop, api, capsys):
    api.pods = [v2_pod("a1", "one", 22), v2_pod("a2", "two", 22)]
    api.answers["/v2/pods/a2/action"] = (200, {"id": "a2", "status": "STOPPING"})
    assert tool.main(["stop", "two"]) == 0
    asked = [(verb, path, body) for (verb, path, _), body in zip(api.seen, api.bodies, strict=True) if verb == "POST"]
    assert asked == [("POST", "/v2/pods/a2/action", b'{"action": "stop"}')]
    assert "stopping pod a2" in capsys.readouterr().out and not (laptop.home / ".ssh").exists()


@pytest.mark.parametrize(
    "path, answer", [("/v1/pods/a1/stop", (200, b"")), ("/graphql", (200, {"data": {"podStop": {"id": "a1", "desiredStatus": "EXITED"}}}))]
)
def test_older_interfaces_stop_a_pod_where_v2_is_missing(laptop, api, monkeypatch, path, answer):
    monkeypatch.setenv("RUNPOD_POD_ID", "a1")  # a pod may not be allowed to list: it is not asked
    api.answers[path] = answer
    assert tool.main(["stop", "a1"]) == 0
    assert api.seen[-1][:2] == ("POST", path) and ("GET", "/v2/pods") not in [seen[:2] for seen in api.seen]
    assert ("podStop" in api.bodies[-1].decode()) == (path == "/graphql")


def test_stop_asks_for_nothing_in_a_dry_run_and_says_what_failed(laptop, api, monkeypatch, capsys):
    monkeypatch.setenv("RUNPOD_POD_ID", "a1")
    assert tool.main(["stop", "a1", "--dry-run"]) == 0
    assert "would stop pod a1" in capsys.readouterr().out and api.seen == []
    assert tool.main(["stop", "a1"]) == 1
    assert "is not known there" in capsys.readouterr().err
    api.answers["/v2/pods/a1/action"] = (500, {})
    assert tool.main(["stop", "a1"]) == 1
    assert "HTTP 500" in capsys.readouterr().err
    api.answers["/v2/pods/a1/action"] = (200, {"errors": [{"message": "no"}]})
    assert tool.main(["stop", "a1"]) == 1
    monkeypatch.setenv("RUNPOD_POD_ID", 'a1"}) { id }')  # is not sent as it stands
    assert tool.main(["stop", 'a1"}) { id }']) == 2
