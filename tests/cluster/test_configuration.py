"""A wrong setting, a file that is not what it claims, a port in use: one clear line, exit 2 (settings) or 1 (the world), at once.

RELIABILITY: B21 to B23.
"""
import json
import os
import re
import shutil
import socket
import subprocess

import pytest

from cluster import BIN_DIR, CONTEXT, MODEL_DIR, SANITIZER_REPORT, SLOWER, SOURCE_DIR, Cluster, wait_until

PROGRAMS = ("roost-router", "roost-worker")
CONTROL, DATA = "tcp://127.0.0.1:*", "tcp://127.0.0.1:*"


@pytest.fixture(params=PROGRAMS)
def program(request):
    return request.param


def run(program, *arguments, environment=None, timeout_s=30 * SLOWER):
    done = subprocess.run([BIN_DIR / program, *map(str, arguments)], capture_output=True, text=True, errors="replace",
                          timeout=timeout_s, env={**os.environ, **(environment or {})}, stdin=subprocess.DEVNULL)
    assert not SANITIZER_REPORT.search(done.stderr), done.stderr
    return done


def check_one_line(done, code, *words):
    assert done.returncode == code, (done.returncode, done.stderr)
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0], lines[0]


def flags(program, **settings):
    base = {"name": "worker-x", "model": MODEL_DIR, "kv_mebibytes": 16} if program == "roost-worker" else {"placement": "memory", "workers": "tcp://127.0.0.1:9"}
    merged = {"listen_control": CONTROL, "listen_data": DATA, "log_level": "error", **base, **settings}
    return [part for key, value in merged.items() for part in ("--" + key.replace("_", "-"), value)]


# ---- settings: exit 2 -------------------------------------------------------------------------------------------------

FILES = [
    ("a typo", "log_level: info\nlisten_contrl: tcp://127.0.0.1:*\n", (":2", "listen_contrl", "listen_control")),
    ("another typo", "\n\nlog_levl: info\n", (":3", "log_levl", "log_level")),
    ("a word for a number", "lease_ms: soon\n", (":1", "lease_ms")),
    ("a negative number", "lease_ms: -5\n", (":1", "lease_ms")),
    ("out of range", "lease_ms: 99999999999999999999\n", (":1", "lease_ms")),
    ("a list for a word", "log_level:\n  - info\n", ("log_level",)),
    ("a map for a word", "log_level:\n  info: yes\n", ("log_level",)),
    ("not among the choices", "log_level: loud\n", (":1", "log_level", "debug")),
    ("twice", "log_level: info\nlog_level: warn\n", (":2", "log_level")),
    ("not a mapping", "- a\n- b\n", (":1",)),
    ("broken YAML", "log_level: [info\n", ("wrong.yaml",)),
    ("a tab", "log_level: info\n\tname: x\n", (":2",)),
    ("an anchor", "log_level: &a info\nlog_format: *a\n", ("wrong.yaml",)),
    ("invalid UTF-8", b"log_level: \xff\n", ("wrong.yaml",)),
    ("NUL", b"log_level: in\0fo\n", ("wrong.yaml",)),
    ("deep", "a: " + "[" * 5000 + "]" * 5000 + "\n", ("wrong.yaml",)),
    ("a document twice", "log_level: info\n---\nlog_level: info\n", ("wrong.yaml",)),
]


@pytest.mark.parametrize("text,words", [row[1:] for row in FILES], ids=[row[0] for row in FILES])
def test_wrong_file(program, tmp_path, text, words):
    path = tmp_path / "wrong.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for check in ((), ("--check-config",)):
        check_one_line(run(program, "--config", path, *check), 2, *words)


def test_wrong_flags(program, tmp_path):
    check_one_line(run(program, "--listen-contrl", CONTROL), 2, "listen-contrl", "listen-control")
    check_one_line(run(program, "--lease-ms", "-1"), 2, "lease")
    check_one_line(run(program, "--lease-ms"), 2, "lease-ms")
    check_one_line(run(program, "surprise"), 2, "surprise")
    check_one_line(run(program, "--config", tmp_path / "absent.yaml"), 2, "absent.yaml")
    check_one_line(run(program, "--config", tmp_path), 2, str(tmp_path))


ENGINE = [
    ("kv_mebibytes", 0, 512), ("kv_mebibytes", 2**24 + 1, 512), ("kv_host_mebibytes", 2**24 + 1, 0), ("chunk_tokens", 0, 256),
    ("chunk_tokens", 4097, 256), ("batch_tokens", 16385, 0), ("sequences_max", 0, 64), ("sequences_max", 1025, 64), ("step_ms_max", 0, 250),
    ("step_ms_max", 10001, 250), ("rewind_tokens", 65537, 1024), ("snapshots_max", 9, 8), ("threads", 65, 0),
    ("queue_requests_max", 0, 64), ("queue_requests_max", 65537, 64),
]


@pytest.mark.parametrize("key,value,default", ENGINE, ids=[f"{row[0]}={row[1]}" for row in ENGINE])
def test_engine_settings(key, value, default):
    """Each has a range, a default and words about what it trades."""
    settings = {key: value, "name": "worker-x", "model": MODEL_DIR}
    check_one_line(run("roost-worker", *[part for name, word in settings.items() for part in ("--" + name.replace("_", "-"), word)],
                       "--check-config"), 2, key.replace("_", "-"))
    printed = run("roost-worker", "--name", "worker-x", "--model", MODEL_DIR, "--print-config").stdout
    assert f"\n{key}: {default}\n" in printed, printed
    assert f"--{key.replace('_', '-')} " in run("roost-worker", "--help").stdout


def test_engine_settings_together():
    arguments = flags("roost-worker", chunk_tokens=512, batch_tokens=511)
    check_one_line(run("roost-worker", *arguments, "--check-config"), 2, "batch_tokens", "chunk_tokens", "512")
    assert run("roost-worker", *flags("roost-worker", chunk_tokens=512, batch_tokens=512), "--check-config").returncode == 0


def test_kv_memory_in_the_log(new_cluster):
    cluster = new_cluster(workers=1, routers=0, redis=False,
                          worker_settings={"kv_mebibytes": 32, "kv_host_mebibytes": 64, "threads": 2, "snapshots_max": 0, "rewind_tokens": 0})
    small, large = (re.search(rf"KV: (\d+) MiB and (\d+) MiB of host memory keep (\d+) tokens: (\d+) conversations of {CONTEXT}", log)
                    for log in (cluster.workers[0].log(), new_cluster(workers=1, routers=0, redis=False, worker_settings={
                        "kv_mebibytes": 64, "kv_host_mebibytes": 128}).workers[0].log()))
    assert small.group(1, 2) == ("32", "64") and large.group(1, 2) == ("64", "128")
    assert int(small[4]) == int(small[3]) // CONTEXT > 0 and int(large[4]) > int(small[4])


def test_wrong_environment(program):
    prefix = "ROOST_" + program.removeprefix("roost-").upper()
    check_one_line(run(program, "--check-config", environment={f"{prefix}_LEASE_MS": "soon"}), 2, "LEASE_MS")
    check_one_line(run(program, "--check-config", environment={f"{prefix}_LEASE_MSS": "5"}), 2, "LEASE_MSS")


ENDPOINTS = ("tcp://0.0.0.0:7400", "tcp://*:7400", "tcp://[::]:7400", "tcp://192.0.2.1:7400", "http://127.0.0.1:7400",
             "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "127.0.0.1:7400", "tcp://:7400", "", "inproc://x")


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("key", ("listen_control", "listen_data"))
def test_refused_endpoints(program, key, endpoint):
    done = run(program, *flags(program, **{key: endpoint}))
    assert done.returncode in (1, 2), done.stderr
    check_one_line(done, done.returncode, endpoint if len(endpoint) > 1 else key)


def test_remote_is_allowed_when_said(program):
    done = run(program, *flags(program, listen_control="tcp://0.0.0.0:7400", allow_remote="true"), "--check-config")
    assert done.returncode == 0, done.stderr


def test_worker_needs_a_name_and_a_model():
    check_one_line(run("roost-worker", "--model", MODEL_DIR, "--log-level", "error"), 2, "name")
    check_one_line(run("roost-worker", "--name", "worker-x", "--log-level", "error"), 2, "model")
    check_one_line(run("roost-worker", *flags("roost-worker", name="a b")), 2, "name")


def test_wrong_redis_address(program):
    done = run(program, *flags(program, redis_address="redis.example.com:6379", **({"placement": "redis"} if "router" in program else {})))
    check_one_line(done, done.returncode, "redis")
    assert done.returncode in (1, 2)


def test_password_file(program, tmp_path):
    secret = tmp_path / "secret"
    settings = {"redis_address": "127.0.0.1:6379", "redis_password_file": secret, **({"placement": "redis"} if "router" in program else {})}
    done = run(program, *flags(program, **settings))
    assert done.returncode in (1, 2) and str(secret) in done.stderr                    # it is not there
    secret.write_text("letmein\n")
    secret.chmod(0o644)
    done = run(program, *flags(program, **settings))
    assert done.returncode in (1, 2) and str(secret) in done.stderr, done.stderr       # everybody can read it
    assert "letmein" not in done.stderr


def test_check_and_print(program, tmp_path):
    """--print-config prints a file that gives the same settings again."""
    arguments = flags(program, lease_ms=321, drain_deadline_ms=4321)
    assert run(program, *arguments, "--check-config").returncode == 0
    printed = run(program, *arguments, "--print-config")
    assert printed.returncode == 0 and "lease_ms: 321" in printed.stdout
    path = tmp_path / "printed.yaml"
    path.write_text(printed.stdout)
    assert run(program, "--config", path, "--check-config").returncode == 0
    assert run(program, "--config", path, "--print-config").stdout == printed.stdout
    prefix = "ROOST_" + program.removeprefix("roost-").upper()
    environment = {f"{prefix}_LEASE_MS": "322"}                                        # over the file
    assert "lease_ms: 322" in run(program, "--config", path, "--print-config", environment=environment).stdout
    assert "lease_ms: 323" in run(program, "--config", path, "--lease-ms", 323, "--print-config", environment=environment).stdout


def test_help_and_version(program):
    for flag in ("--help", "--version"):
        done = run(program, flag)
        assert done.returncode == 0 and program in done.stdout and not done.stderr


def test_samples_are_valid():
    for name in ("router", "worker"):
        sample = SOURCE_DIR / "deploy" / "etc" / f"{name}.yaml"
        done = run(f"roost-{name}", "--config", sample, "--check-config")
        assert done.returncode == 0, done.stderr


# ---- the world: exit 1 ------------------------------------------------------------------------------------------------


def test_port_in_use(program):
    for key in ("listen_control", "listen_data"):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            endpoint = "tcp://127.0.0.1:%d" % taken.getsockname()[1]
            check_one_line(run(program, *flags(program, **{key: endpoint})), 1, endpoint, "in use")


def test_ready_file_cannot_be_written(program, tmp_path):
    path = tmp_path / "absent" / "ready"
    check_one_line(run(program, *flags(program, ready_file=path)), 1, str(path))


def test_two_workers_of_one_name(new_cluster, tmp_path):
    """The second start of a name takes it over or is refused; both never serve a name at once without a word in the log."""
    cluster = new_cluster(workers=1)
    other = tmp_path / "other"
    other.mkdir()
    second = Cluster(other, workers=1, routers=0, redis=False, start=False)
    second.workers[0].command += ["--redis-address", cluster.redis.address]
    second.workers[0].start()
    both = [worker.ready["incarnation"] for worker in (cluster.workers[0], second.workers[0])]
    wait_until("an entry of one of them", lambda: cluster.redis.hash("roost:worker:worker-a").get("incarnation") in both, 10 * SLOWER)
    second.close()


@pytest.fixture
def model(tmp_path):
    """A copy of the shipped model, to be spoiled."""
    copy = tmp_path / "model"
    shutil.copytree(MODEL_DIR, copy)
    copy.chmod(0o755)
    for path in copy.iterdir():
        path.chmod(0o644)
    return copy


def check_model_refused(model, *words):
    check_one_line(run("roost-worker", *flags("roost-worker", model=model)), 1, *words)


def test_model_that_is_not_there(tmp_path):
    check_model_refused(tmp_path / "absent", "absent")
    check_model_refused("/dev/null", "/dev/null")
    check_model_refused(tmp_path, str(tmp_path))


@pytest.mark.parametrize("name", ("config.json", "model.safetensors", "tokenizer.model"))
def test_model_files(model, name):
    """Each file missing, empty, cut, random, a directory, a FIFO."""
    path = model / name
    good = path.read_bytes()

    def spoil(make):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        make()
        check_model_refused(model, name)

    spoil(lambda: None)
    for bad in (b"", good[:1], good[:7], good[:len(good) // 2], good.rstrip()[:-1], os.urandom(4096), bytes(4096), b"\xff" * 4096, b"{}", b"[" * 100000):
        spoil(lambda: path.write_bytes(bad))
    spoil(lambda: path.mkdir())
    spoil(lambda: os.mkfifo(path))
    path.unlink()
    path.write_bytes(good)
    path.chmod(0)
    if os.geteuid() != 0:                               # root can read everything
        check_model_refused(model, name)


def test_config_json(model):
    path = model / "config.json"
    good = json.loads(path.read_text())
    vocabulary, layers = good["vocab_size"], good["num_hidden_layers"]
    wrong = [{"vocab_size": 10_000_000}, {"vocab_size": -1}, {"vocab_size": str(vocabulary)}, {"vocab_size": vocabulary - 1},
             {"hidden_size": 2**40}, {"hidden_size": good["hidden_size"] - 1}, {"num_hidden_layers": 0}, {"num_hidden_layers": layers + 1},
             {"head_dim": 63}, {"head_dim": 0}, {"num_key_value_heads": 3}, {"kv_producer": [layers - 1] * layers},
             {"kv_producer": [0] * (layers - 1)}, {"kv_producer": [-1] + [0] * (layers - 1)}, {"layer_types": ["full_attention"]},
             {"layer_types": ["other"] * layers}, {"sliding_window": 0}, {"rms_norm_eps": -1}, {"rope_theta": 0}, {"rope_theta": "x"},
             {"bos_token_id": -1}, {"bos_token_id": vocabulary}, {"eos_token_id": 1},
             {"architectures": ["LlamaForCausalLM"]}, {"architectures": []}, {"chat_template": "other"}, {"hidden_activation": "relu"},
             {"tie_word_embeddings": False}, {"attention_scale": None}, {"an_unknown_key": 1}, {"name": "a b"},
             {"max_position_embeddings": 0}]
    for change in wrong:
        path.write_text(json.dumps({**good, **change}))
        check_model_refused(model)
    for key in ("vocab_size", "head_dim", "architectures", "layer_types", "eos_token_id"):
        path.write_text(json.dumps({name: value for name, value in good.items() if name != key}))
        check_model_refused(model, key)
    for text in (json.dumps(good)[:-1], '{"a":' * 100000, '{"vocab_size": 1, "vocab_size": 2}', "null", '"' + "a" * 2_000_000):
        path.write_text(text)
        check_model_refused(model, "config.json")


def test_safetensors(model):
    path = model / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8:8 + size]), raw[8 + size:]
    names = [name for name in header if name != "__metadata__"]
    first, second = names[0], names[1]

    def write(changed, body=data, length=None, text=None):
        text = json.dumps(changed).encode() if text is None else text
        text += b" " * (-(len(text) + 8) % 64)
        path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + body)

    def changed(name, **fields):
        return {**header, name: {**header[name], **fields}}

    at = header[first]["data_offsets"]
    duplicate = json.dumps(header).encode()[:-1] + b', "%s": %s}' % (first.encode(), json.dumps(header[first]).encode())
    bad = [
        dict(changed=header, length=0), dict(changed=header, length=2**63), dict(changed=header, length=2**64 - 1),
        dict(changed=header, length=len(raw)), dict(changed=None, text=b"not JSON"), dict(changed=None, text=b"[]"),
        dict(changed=header, body=data[:-1]), dict(changed=header, body=data + b"\0"), dict(changed=header, body=b""),
        dict(changed=changed(first, data_offsets=[at[0], at[1] + 64])), dict(changed=changed(first, data_offsets=[at[1], at[0]])),
        dict(changed=changed(first, data_offsets=[-64, at[1]])), dict(changed=changed(first, data_offsets=[at[0], 2**63])),
        dict(changed=changed(second, data_offsets=at)), dict(changed=changed(first, shape=[2**32, 2**32])),
        dict(changed=changed(first, shape=[2**62, 4])), dict(changed=changed(first, shape=[])), dict(changed=changed(first, shape=[-1])),
        dict(changed=changed(first, shape=list(reversed(header[first]["shape"])))), dict(changed=changed(first, shape="x")),
        dict(changed=changed(first, dtype="F32")), dict(changed=changed(first, dtype="BF16")), dict(changed=changed(first, dtype=7)),
        dict(changed=changed(first, surprise=1)), dict(changed={**header, first: None}),
        dict(changed={name: value for name, value in header.items() if name != first}),
        dict(changed={**header, "__metadata__": {"format": 5}}), dict(changed={**header, "__metadata__": {}}),
        dict(changed={**header, "__metadata__": {**header["__metadata__"], "activation_scheme": "other"}}),
        dict(changed=None, text=duplicate), dict(changed=None, text=b'{"a":' * 50000),
        dict(changed={**header, **{f"extra.{i}": {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]} for i in range(70000)}}),
    ]
    for row in bad:
        write(**row)
        check_model_refused(model, "model.safetensors")
    write(header)
    assert run("roost", "model", "describe", model).returncode == 0


def test_numbers_in_weights(model):
    """A scale that is no number: found when the file is read, or by the known answer, but never served."""
    path = model / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:8 + size])
    name = next(name for name in header if name.endswith("_scale"))
    at = 8 + size + header[name]["data_offsets"][0]
    for value in (b"\0\0\xc0\x7f", b"\0\0\x80\x7f"):
        path.write_bytes(raw[:at] + value + raw[at + 4:])
        check_model_refused(model)


def test_other_weights_than_sealed(model):
    """One changed weight computes something else than the sealed known answer."""
    if not (model / "known_answer.json").exists():
        assert run("roost", "model", "seal", model).returncode == 0
    path = model / "model.safetensors"
    raw = bytearray(path.read_bytes())
    for i in range(1000):
        raw[-1 - 997 * i] ^= 0x40
    path.write_bytes(raw)
    check_model_refused(model)


def test_tokenizer(model):
    path = model / "tokenizer.model"
    good = path.read_bytes()
    at = good.index(b"\x18\x03", good.index(b"<turn>"))
    normal = good[:at] + b"\x18\x01" + good[at + 2:]       # a piece that text may become
    for spoiled in (good + b"\xff" * 10, normal, good.replace(b"<end>", b"</s>\x00"), good[100:],
                    b"\x0a\xff\xff\xff\xff\x0f" + good, good[:20] * 3000, good + good):
        path.write_bytes(spoiled)
        check_model_refused(model, "tokenizer.model")
