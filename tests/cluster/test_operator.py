"""The operator ports of real routers and workers, the commands that use them, and the table of metrics in docs/operations.md."""
import json
import re
import subprocess
import urllib.error
import urllib.request

import pytest

from cluster import BIN_DIR, EXIT_S, SOURCE_DIR, START_S, Cluster, wait_until

OPERATOR = {"listen_operator": "127.0.0.1:0"}
SIMULATED = {**OPERATOR, "simulate": "fast,reply=30"}
CLUSTER = {"worker_settings": SIMULATED, "router_settings": OPERATOR}


def url(process, path):
    return f"http://{process.ready['operator']}{path}"


def ask(process, path, method="GET", headers=None):
    """(status, body): of an error too."""
    request = urllib.request.Request(url(process, path), method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def ask_json(process, path, method="GET"):
    status, body = ask(process, path, method)
    return status, json.loads(body)


def metrics(process):
    """{family: (type, help)} and {sample with its labels: value}."""
    status, text = ask(process, "/metrics")
    assert status == 200
    families, samples = {}, {}
    for line in text.splitlines():
        if line.startswith("# HELP "):
            name, words = line[7:].split(" ", 1)
            families[name] = [None, words]
        elif line.startswith("# TYPE "):
            name, kind = line[7:].split(" ")
            assert name in families and families[name][0] is None, f"{name} twice, or without help"
            families[name][0] = kind
        else:
            sample, value = line.rsplit(" ", 1)
            assert sample not in samples, f"{sample} twice"
            samples[sample] = float(value)
            family = re.sub(r"\{.*", "", sample)
            assert family in families or re.sub(r"_(bucket|sum|count)$", "", family) in families
    return families, samples


def roost(*arguments, router=None, code=0):
    words = [str(BIN_DIR / "roost"), *arguments, *(["--router", url(router, "")] if router else [])]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout if code == 0 else done.stderr


def look(*arguments, router):
    """What the tool says; nothing, if it fails. (It does where Redis does not answer at once.)"""
    done = subprocess.run([str(BIN_DIR / "roost"), *arguments, "--router", url(router, "")], capture_output=True, text=True, timeout=60)
    return done.stdout if done.returncode == 0 else ""


def say(cluster, conversation, text="hello", turns=1, router=0):
    """Turns of a conversation; what the tool reports of each."""
    done = subprocess.run([str(BIN_DIR / "roost"), "chat", "--json", "--conversation", conversation, "--router",
                           cluster.routers[router].ready["control"]], input=f"{text}\n" * turns, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def worker_state(router, name):
    _, answer = ask_json(router, "/workers")
    return next((worker["state"] for worker in answer["workers"] if worker["name"] == name), None)


# ---- endpoints

def test_health_and_readiness(shared_cluster):
    router, worker = shared_cluster.routers[0], shared_cluster.workers[0]
    for process in (router, worker):
        assert ask_json(process, "/healthz") == (200, {"status": "ok"})
    both = (200, {"status": "ready", "workers_ready": 2})
    wait_until("the router is open, and both workers are ready", lambda: ask_json(router, "/readyz") == both, START_S)     # its port is there before
    assert ask_json(worker, "/readyz") == (200, {"status": "ready"})


@pytest.mark.parametrize("which", ["routers", "workers"])
def test_what_is_not_there(shared_cluster, which):
    process = getattr(shared_cluster, which)[0]
    assert ask(process, "/nowhere")[0] == 404
    assert ask(process, "/drain")[0] == 405
    assert ask(process, "/metrics", "POST")[0] == 405
    assert ask(process, "/drain?worker=worker-a", "POST", {"Origin": "http://page.example"})[0] == 403
    status, answer = ask_json(process, "/drain?worker=worker-a&deadline_ms=soon", "POST")
    assert status == 400 and "deadline_ms" in answer["error"]
    assert ask(process, "/probe", "POST")[0] in (400, 501)


def test_workers(shared_cluster):
    def at_rest():
        """A worker, or Redis, that was kept waiting for a moment is not ready then."""
        status, answer = ask_json(shared_cluster.routers[0], "/workers")
        return status == 200 and answer["store_up"] and all(worker["ready"] for worker in answer["workers"]) and answer
    answer = wait_until("all to be ready", at_rest, START_S)
    assert answer["router"] == "router-1" and answer["store"] == "redis"
    workers = {worker["name"]: worker for worker in answer["workers"]}
    assert set(workers) == {"worker-a", "worker-b"}
    for worker in shared_cluster.workers:
        seen = workers[worker.name]
        assert seen["state"] == "ready" and seen["ready"] and not seen["draining"] and seen["breaker"] == "closed"
        assert seen["incarnation"] == worker.ready["incarnation"] and seen["endpoint"] == worker.ready["control"]
        assert seen["load"]["kv_tokens_max"] > 0


def test_whereis_names_the_worker_that_answered(shared_cluster):
    router = shared_cluster.routers[0]
    turns = say(shared_cluster, "whereis-1", turns=2)
    owner = turns[0]["worker"]
    tokens = turns[1]["prompt_tokens"] + turns[1]["reply_tokens"]

    def recorded():
        _, answer = ask_json(router, "/conversation?name=whereis-1")
        return answer["store_answered"] and answer["record"] and answer["record"]["tokens"] == tokens and \
            answer["next_turn"]["reason"] == "owner" and answer
    answer = wait_until("the owner's note of its tokens", recorded, START_S)
    assert answer["record"]["owner"] == owner and answer["record"]["tier"] == "device" and answer["next_turn"]["worker"] == owner
    assert "roost:{%s}:place" % answer["key"] == shared_cluster.place_key("default", "whereis-1")
    wait_until("its words", lambda: look("whereis", "whereis-1", router=router).startswith(f"{owner}, {tokens} tokens in its device tier"), START_S)
    assert json.loads(wait_until("its JSON", lambda: look("whereis", "whereis-1", "--json", router=router), START_S))["record"]["owner"] == owner


def test_looking_changes_nothing(shared_cluster):
    router = shared_cluster.routers[0]
    def answered():
        status, answer = ask_json(router, "/conversation?name=never-said&tenant=somebody")
        assert status == 200 and answer["record"] is None
        return answer["store_answered"] and answer["next_turn"]["worker"] and answer
    answer = wait_until("Redis to answer, and a worker to be ready", answered, START_S)
    assert answer["next_turn"]["reason"] == "new"
    assert answer["next_turn"]["worker"] in ("worker-a", "worker-b")
    assert shared_cluster.place("never-said", "somebody") == {}
    assert "no worker holds conversation 'never-said'" in roost("whereis", "never-said", "--tenant", "somebody", router=router, code=1)
    assert ask(router, "/conversation?name=a%20b")[0] == 400


# ---- records tell what is held

def test_evicted_conversations_lose_their_record(new_cluster):
    """A cache for some of forty conversations: Redis forgets those that it evicted, and no other."""
    settings = {**OPERATOR, "simulate": "fast,reply=30,context=512,kv_tokens=4096", "kv_host_mebibytes": 0}
    cluster = new_cluster(workers=1, worker_settings=settings, router_settings=OPERATOR)
    names = [f"talk-{i}" for i in range(40)]
    for name in names:
        say(cluster, name, " ".join([name] + ["the king is dead and nobody knows the road"] * 20))
    worker = cluster.workers[0]

    def told():
        _, samples = metrics(worker)
        gone = samples["roost_worker_records_evicted_total"]
        return gone > 0 and samples["roost_worker_conversations_due"] == 0 and samples["roost_worker_conversations"] + gone == len(names)
    wait_until("records of what was evicted are gone", told, START_S)
    held = [name for name in names if cluster.place(name)]
    assert len(held) == metrics(worker)[1]["roost_worker_conversations"]
    assert held == names[-len(held):] and 4 <= len(held) < 30, held
    record = cluster.place(held[0])
    assert record["tier"] == "device" and int(record["tokens"]) > 0
    routes = (say(cluster, name)[0]["route"] for name in names[:-len(held)])
    assert next(route for route in routes if route != "redis-down") == "new"     # nothing is there that would be worth going home to


def test_records_tell_the_tier(new_cluster):
    """The same cache above a host tier that has room for all: nothing is forgotten, and what is not on the device is said to be elsewhere."""
    settings = {**OPERATOR, "simulate": "fast,reply=30,context=512,kv_tokens=4096", "kv_host_mebibytes": 1024}
    cluster = new_cluster(workers=1, worker_settings=settings, router_settings=OPERATOR)
    texts = {f"talk-{i}": " ".join([f"talk-{i}"] + ["the king is dead and nobody knows the road"] * 20) for i in range(20)}
    for name, text in texts.items():
        say(cluster, name, text)
    names, worker = list(texts), cluster.workers[0]

    def tiers():
        return [cluster.place(name).get("tier") for name in names]

    def told():
        samples = metrics(worker)[1]
        seen = tiers()
        return samples["roost_worker_conversations_due"] == 0 and set(seen) == {"host", "device"} and seen[0] == "host" and seen[-1] == "device"
    wait_until("records of what left the device say so", told, START_S)
    assert metrics(worker)[1]["roost_worker_records_evicted_total"] == 0
    wait_until("the tool to say so", lambda: "in its host tier" in look("whereis", names[0], router=cluster.routers[0]), START_S)
    for name, tier in zip(names, tiers()):
        again = say(cluster, name, texts[name])[0]
        if again["route"] != "redis-down":                       # else Redis did not answer in 2 ms, and another one is asked
            break
    assert tier == "host" and again["route"] == "owner" and again["cached_tokens"] > 200, again
    wait_until("it is on the device again", lambda: cluster.place(name).get("tier") == "device", START_S)


# ---- the tool

def test_workers_command(shared_cluster):
    def both():
        text = roost("workers", router=shared_cluster.routers[0])
        return re.search(r"^worker-a +ready ", text, re.M) and re.search(r"^worker-b +ready ", text, re.M)
    wait_until("both to be ready", both, START_S)
    assert {worker["name"] for worker in json.loads(roost("workers", "--json", router=shared_cluster.routers[0]))["workers"]} == {"worker-a", "worker-b"}


def test_commands_say_what_is_wrong(shared_cluster):
    router, worker = shared_cluster.routers[0], shared_cluster.workers[0]
    assert "no router answers at http://127.0.0.1:1: " in roost("workers", "--router", "http://127.0.0.1:1", code=1)
    assert "listen_operator" in roost("whereis", "x", "--router", "http://127.0.0.1:1", code=1)
    assert "knows no worker of that name" in roost("drain", "worker-z", router=router, code=1)
    assert "there is no /workers here" in roost("workers", router=worker, code=1)        # a worker's port
    for wrong in (["whereis"], ["whereis", "a b"], ["whereis", "a", "b"], ["drain"], ["drain", "w", "--deadline", "x"], ["drain", "w", "--deadline", "0"],
                  ["drain", "w", "--cancel", "--deadline", "1"], ["workers", "w"], ["workers", "--tenant", "t"], ["workers", "--router"]):
        assert "--help" in roost(*wrong, code=2), wrong
    for command in ("workers", "whereis", "drain"):
        assert f"usage: roost {command}" in roost(command, "--help")


# ---- draining

def test_drained_worker_shows_draining_then_safe_to_delete(new_cluster):
    cluster = new_cluster(worker_settings={**SIMULATED, "simulate": "fast,reply=0"}, router_settings=OPERATOR)
    router = cluster.routers[0]
    first = say(cluster, "drained", "hello")[0]
    worker = cluster.worker(first["worker"])
    other = cluster.other_worker(worker.name)
    assert ask(worker, "/simulate?factor=300", "POST")[0] == 200          # 0.15 s a token: it is still at it
    running = subprocess.Popen([str(BIN_DIR / "roost"), "chat", "--json", "--conversation", "drained", "--tokens-max", "500", "--router",
                                router.ready["control"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    running.stdin.write("go on\n")
    running.stdin.flush()
    wait_until("the turn to run", lambda: metrics(worker)[1]["roost_worker_streams"] == 1, START_S)
    assert "was asked to drain" in roost("drain", worker.name, "--no-wait", router=router)
    wait_until("draining", lambda: worker_state(router, worker.name) == "draining", START_S)
    assert ask_json(worker, "/readyz") == (503, {"error": "this worker is draining"})
    assert say(cluster, "somebody-else", "hello")[0]["worker"] == other.name    # nothing new goes there
    assert ask(worker, "/simulate?factor=1", "POST")[0] == 200
    assert roost("drain", worker.name, router=router) == f"{worker.name} is safe to delete\n"
    running.stdin.close()
    turn = json.loads(running.stdout.read())
    assert running.wait(60) == 0 and turn["worker"] == worker.name and turn["reply_tokens"] == 500   # what ran there ended there
    assert worker_state(router, worker.name) == "safe to delete" and worker.alive()
    assert say(cluster, "drained", "more")[0]["worker"] == other.name

    roost("drain", worker.name, "--cancel", router=router)
    wait_until("ready again", lambda: worker_state(router, worker.name) == "ready", START_S)
    assert ask(worker, "/readyz")[0] == 200

    assert ask_json(worker, "/drain", "POST")[0] == 202                       # without a router
    wait_until("safe to delete", lambda: worker_state(router, worker.name) == "safe to delete", START_S)
    worker.terminate()
    assert worker.wait_exit() == 0
    wait_until("the router to know", lambda: worker_state(router, worker.name) in ("down", None), START_S)
    wait_until("the other one", lambda: ask_json(router, "/readyz")[1].get("workers_ready") == 1, START_S)


def test_drain_that_reaches_its_deadline_says_what_is_left(new_cluster):
    cluster = new_cluster(worker_settings={**SIMULATED, "simulate": "fast,reply=0"}, router_settings=OPERATOR)
    router = cluster.routers[0]
    running = subprocess.Popen([str(BIN_DIR / "roost"), "chat", "--json", "--conversation", "long", "--tokens-max", "500", "--router",
                                router.ready["control"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for worker in cluster.workers:
        assert ask(worker, "/simulate?factor=100", "POST")[0] == 200              # 0.05 s a token
    running.stdin.write("tell me\n")
    running.stdin.close()
    worker = wait_until("the turn to run", lambda: next(
        (worker for worker in cluster.workers if metrics(worker)[1]["roost_worker_streams"] == 1), None), START_S)
    said = roost("drain", worker.name, "--deadline", "1", router=router)
    assert said == f"{worker.name} is safe to delete: 1 requests that still run there go on elsewhere when it ends\n"
    _, answer = ask_json(router, "/workers")
    drain = next(seen["drain"] for seen in answer["workers"] if seen["name"] == worker.name)
    assert drain["abandoned"] == 1
    other = cluster.other_worker(worker.name)
    assert ask(other, "/simulate?factor=1", "POST")[0] == 200
    worker.kill()
    turn = json.loads(running.stdout.read())
    assert running.wait(60) == 0 and turn["reply_tokens"] == 500 and turn["worker"] == other.name
    assert metrics(router)[1]["roost_router_moves_total"] == 1 and metrics(router)[1]["roost_router_losses_total"] == 1


def test_router_without_workers_is_not_ready(new_cluster):
    cluster = new_cluster(workers=1, worker_settings=SIMULATED, router_settings=OPERATOR)
    router = cluster.routers[0]
    cluster.workers[0].kill()
    wait_until("not ready", lambda: ask(router, "/readyz")[0] == 503, START_S)
    assert ask(router, "/healthz")[0] == 200
    cluster.redis.pause()
    status, answer = ask_json(router, "/conversation?name=c")                 # answered all the same
    assert status == 200 and not answer["store_answered"] and answer["next_turn"]["reason"] == "none"
    cluster.redis.resume()


def test_only_loopback_without_allow_remote():
    for program, words in (("roost-router", []), ("roost-worker", ["--name", "w", "--model", "m"])):
        done = subprocess.run([str(BIN_DIR / program), *words, "--listen-operator", "0.0.0.0:7490", "--check-config"], capture_output=True, text=True)
        assert done.returncode == 2 and "listen_operator: 0.0.0.0:7490 can be reached from other hosts" in done.stderr
        done = subprocess.run([str(BIN_DIR / program), *words, "--listen-operator", "nonsense", "--check-config"], capture_output=True, text=True)
        assert done.returncode == 2 and "listen_operator: 'nonsense' is not IP:PORT" in done.stderr


# ---- metrics

def test_metrics_count_what_happened(shared_cluster):
    router, workers = shared_cluster.routers[0], shared_cluster.workers
    for attempt in range(10):
        before = metrics(router)[1]
        held = {worker.name: metrics(worker)[1] for worker in workers}
        turns = say(shared_cluster, f"counted-{attempt}", turns=3)
        after = metrics(router)[1]
        if [turn["route"] for turn in turns] == ["new", "owner", "owner"]:      # else Redis, or a worker, was kept waiting: the machine is busy
            break
    home = turns[0]["worker"]
    now = metrics(shared_cluster.worker(home))[1]

    def grew(name):
        return after[name] - before[name]
    assert grew("roost_router_requests_total") == grew("roost_router_done_total") == 3
    assert grew('roost_router_dispatches_total{reason="new"}') == 1 and grew('roost_router_dispatches_total{reason="owner"}') == 2
    assert sum(value for name, value in after.items() if name.startswith("roost_router_in_flight{")) == 0
    wait_until("all to be ready", lambda: (now := metrics(router)[1]) and now['roost_router_workers{state="ready"}'] == 2 and
               now["roost_router_store_up"] == 1, START_S)
    assert grew("roost_router_prompt_tokens_total") == sum(turn["prompt_tokens"] for turn in turns)
    assert grew("roost_router_cached_tokens_total") == sum(turn["cached_tokens"] for turn in turns) > 0
    assert grew("roost_router_redis_commands_total") > 0
    assert now["roost_worker_tokens_total"] - held[home]["roost_worker_tokens_total"] == sum(turn["reply_tokens"] for turn in turns)
    assert now["roost_worker_done_total"] - held[home]["roost_worker_done_total"] == 3
    assert not any("counted" in name or "default" in name for name in [*after, *now])    # no conversation, no tenant


def table_of(text, heading):
    """{name: [type, meaning]} of the table under a heading of docs/operations.md."""
    part = text.split(f"### {heading}\n", 1)[1].split("\n#", 1)[0]
    rows = re.findall(r"^\| `([a-z_]+)(?:\{[a-z]+\})?` \| (\w+) \| (.+) \|$", part, re.M)
    assert rows
    return {name: [kind, meaning] for name, kind, meaning in rows}


def test_the_table_of_metrics_is_true(shared_cluster):
    text = (SOURCE_DIR / "docs" / "operations.md").read_text()
    process = table_of(text, "Both")
    for heading, program in (("Router", shared_cluster.routers[0]), ("Worker", shared_cluster.workers[0])):
        assert {**table_of(text, heading), **process} == metrics(program)[0]


def test_engine_that_hangs_does_not_keep_its_worker(new_cluster):
    cluster = new_cluster(worker_settings={**SIMULATED, "simulate": "fast,reply=0,step_us=100000", "drain_deadline_ms": 1000}, router_settings=OPERATOR)
    running = subprocess.Popen([str(BIN_DIR / "roost"), "chat", "--json", "--conversation", "held", "--tokens-max", "100", "--router",
                                cluster.routers[0].ready["control"]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    running.stdin.write("tell me\n")
    running.stdin.close()
    worker = wait_until("the turn to run", lambda: next(
        (worker for worker in cluster.workers if metrics(worker)[1]["roost_worker_streams"] == 1), None), START_S)
    assert ask(worker, "/simulate?factor=1000000", "POST")[0] == 200
    worker.terminate()
    turn = json.loads(running.stdout.read())
    assert running.wait(60) == 0 and turn["reply_tokens"] == 100 and turn["worker"] == cluster.other_worker(worker.name).name
    worker.killed = True                                                          # it does not end as others do
    assert worker.wait_exit(20 + EXIT_S) == 1
    assert "the engine hangs" in worker.log()
