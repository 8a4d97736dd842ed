"""roost, the command-line tool: in a pipe, in a terminal, and when something is wrong."""
import codecs
import json
import os
import pty
import re
import select
import shlex
import subprocess
import time

import pytest

from cluster import BIN_DIR, CONTEXT, MODEL_DIR, SANITIZER_REPORT, SLOWER, SOURCE_DIR
from wire_client import SYSTEM, Peer, say

CLUSTER = {"workers": 2}
ROOST = BIN_DIR / "roost"
SETTING = """Two households, both alike in dignity, in fair Verona, where we lay our scene, from ancient grudge break to new mutiny, where
civil blood makes civil hands unclean. From forth the fatal loins of these two foes a pair of star-cross'd lovers take their life.
SCENE II. Capulet's orchard."""
SETTING_DEFAULT = "SCENE I. A public place."
NOBODY = "tcp://127.0.0.1:9"


def run(*arguments, text="", timeout_s=60 * SLOWER):
    done = subprocess.run([ROOST, *map(str, arguments)], input=text, capture_output=True, text=True, timeout=timeout_s)
    assert not SANITIZER_REPORT.search(done.stderr), done.stderr
    return done


def chat(cluster, *arguments, text=""):
    return run("chat", "--router", cluster.routers[0].ready["control"], *arguments, text=text)


def test_json_script(shared_cluster):
    script = SOURCE_DIR / "deploy" / "scenes" / "balcony.txt"
    done = chat(shared_cluster, "--json", "--as", "ROMEO", "--with", "JULIET", "--setting", SETTING, "--tokens-max", "40",
                "--script", script, "--conversation", "balcony")
    assert done.returncode == 0, done.stderr
    turns = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(turns) == len(script.read_text().splitlines()) >= 6
    assert len({turn["worker"] for turn in turns}) == 1
    for number, turn in enumerate(turns):
        assert turn["turn"] == number + 1 and turn["conversation"] == "balcony" and turn["error"] is None
        assert turn["ids"] == turn["reply_tokens"] > 0 and turn["route"]
        assert set(turn["timings"]) >= {"first_token_ms", "total_ms", "queue_us", "prefill_us", "decode_us", "route_us"}
        if number > 0:
            assert turn["cached_tokens"] > 0.75 * turn["prompt_tokens"]


def test_readme_transcript(shared_cluster):
    """The README shows what the shipped model says in the scene of the quickstart. `deploy/quickstart --check` prints it anew."""
    quickstart = (SOURCE_DIR / "deploy" / "quickstart").read_text()
    script = SOURCE_DIR / re.search(r"^script=(\S+)", quickstart, re.M)[1]
    scene = shlex.split(re.search(r"^scene=\((.*)\)$", quickstart, re.M)[1])
    done = chat(shared_cluster, "--json", *scene, "--script", script)
    assert done.returncode == 0, done.stderr
    replies = [json.loads(line)["text"] for line in done.stdout.splitlines()]
    lines = [line.replace("\\n", "\n") for line in script.read_text().splitlines()]
    transcript = re.search(r"^```\n(ROMEO: .*?)^```$", (SOURCE_DIR / "README.md").read_text(), re.M | re.S)[1]
    spoken, turns = re.subn(r"^  \[worker-.*\]\n", "", transcript, flags=re.M)
    assert turns >= 3
    assert spoken == "\n".join(f"ROMEO: {line}\nJULIET: {reply}\n" for line, reply in list(zip(lines, replies))[:turns])


def test_pipe(shared_cluster):
    done = chat(shared_cluster, "--with", "HORATIO", "--tokens-max", "8", "--temperature", "0", text="Who is there?\nStand.\\nUnfold yourself.\n")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("HORATIO: ") for line in lines) == 2
    costs = [line for line in lines if re.fullmatch(r"\[worker-[ab] · \d+ of \d+ prompt tokens from cache · first token \d+ ms"
                                                    r" · \d+ tok/s · route [a-z_-]+( · cut at 8 tokens)?\]", line)]
    assert len(costs) == 2, done.stdout
    assert "\x1b" not in done.stdout


def test_roles(shared_cluster):
    """--as and --with alone are a scene: it has a setting, the messages have their speakers, and the reply is asked for by its name."""
    def speak(*options):
        done = chat(shared_cluster, "--json", "--seed", "7", "--tokens-max", "24", *options, text="I take thee at thy word.\n")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
    roles = ("--as", "ROMEO", "--with", "JULIET")
    plain, bare, unnamed = speak(*roles), speak(*roles, "--setting", ""), speak("--as", "ROMEO")
    with Peer(shared_cluster.routers[0].ready["control"]) as peer:
        messages = [say(SETTING_DEFAULT, role=SYSTEM), say("I take thee at thy word.", "ROMEO")]
        for turn, said in ((plain, messages), (bare, messages[1:])):
            reply = peer.generate(said, {"seed": 7, "seed_given": True}, reply_name="JULIET", temperature=0.8, tokens_max=24)
            assert (turn["text"], turn["prompt_tokens"]) == (reply.text, reply.usage.prompt_tokens)
        unset = peer.generate(messages[1:], {"seed": 7, "seed_given": True}, temperature=0.8, tokens_max=24)
        assert (unnamed["text"], unnamed["prompt_tokens"]) == (unset.text, unset.usage.prompt_tokens)


def test_seeds(shared_cluster):
    def say(*options):
        return json.loads(chat(shared_cluster, "--json", "--tokens-max", "16", "--temperature", "1", *options, text="Speak.\n").stdout)["text"]
    assert say("--seed", "7") == say("--seed", "7")
    assert len({say("--seed", str(seed)) for seed in range(4)}) > 1


def test_sampling_options(shared_cluster):
    def say(*options):
        done = chat(shared_cluster, "--json", "--seed", "5", "--tokens-max", "16", *options, text="Speak.\n")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
    plain, lively = say("--temperature", "0"), say("--temperature", "3")
    assert plain["text"] != lively["text"]
    for narrow in (("--top-k", "1"), ("--top-p", "0.000001"), ("--min-p", "1")):
        assert say("--temperature", "3", *narrow)["text"] == plain["text"]
    stop = plain["text"][4:6]
    stopped = say("--temperature", "0", "--stop", "never said", "--stop", stop)
    assert stopped["text"] == plain["text"][:plain["text"].index(stop)] and stopped["finish"] == "stop string"
    assert say("--temperature", "0", "--tokens-min", "16")["ids"] == 16
    for penalty in ("--frequency-penalty", "--presence-penalty"):
        assert say("--temperature", "0", "--tokens-min", "16", penalty, "-10")["text"] != say("--temperature", "0", "--tokens-min", "16")["text"]
    assert say("--temperature", "0", "--repetition-penalty", "10")["text"] != plain["text"]
    assert say("--truncate")["dropped_messages"] == 0


def test_retry(shared_cluster):
    done = chat(shared_cluster, "--json", "--seed", "3", "--temperature", "1", "--tokens-max", "16", text="Speak.\n/retry\n/retry\nMore.\n")
    turns = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(turns) == 4
    assert len({turn["prompt_tokens"] for turn in turns[:3]}) == 1
    assert len({turn["text"] for turn in turns[:3]}) > 1
    assert turns[2]["cached_tokens"] == turns[2]["prompt_tokens"] - 1      # the same question: only its last token is computed again


def test_commands(shared_cluster):
    done = chat(shared_cluster, "--json", "--tokens-max", "2", text="/help\n//slash\n/quit\nnever said\n")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1
    assert "/retry" in done.stderr
    done = chat(shared_cluster, text="/fly\nnever said\n")
    assert done.returncode == 1 and "/fly" in done.stderr


def test_over_the_context(shared_cluster):
    done = chat(shared_cluster, "--json", text="To be, or not to be. " * CONTEXT + "\nnever said\n")
    assert done.returncode == 1
    (turn,) = map(json.loads, done.stdout.splitlines())
    assert turn["error"]["code"] == "too large" and turn["error"]["detail"]


def test_invalid_text(shared_cluster):
    done = subprocess.run([ROOST, "chat", "--json", "--router", shared_cluster.routers[0].ready["control"]], input=b"\xff\n",
                          capture_output=True, timeout=60 * SLOWER)
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "invalid"


USAGE = [
    ((), 2, "usage"), (("fly",), 2, "fly"), (("chat", "--fly"), 2, "--fly"), (("chat", "surprise"), 2, "surprise"),
    (("chat", "--top-p", "1.5"), 2, "--top-p"), (("chat", "--min-p", "x"), 2, "--min-p"), (("chat", "--top-k", "-1"), 2, "--top-k"),
    (("chat", "--repetition-penalty", "0"), 2, "0.01 to 10"), (("chat", "--presence-penalty", "-11"), 2, "-10 to 10"),
    (("chat", "--frequency-penalty", "nan"), 2, "--frequency-penalty"), (("chat", "--stop", ""), 2, "--stop"),
    (("chat", "--stop", "x" * 257), 2, "256"), (("chat", *["--stop", "x"] * 17), 2, "16 times"), (("chat", "--tokens-min", "x"), 2, "--tokens-min"),
    (("chat", "--temperature", "hot"), 2, "hot"), (("chat", "--temperature", "nan"), 2, "nan"), (("chat", "--temperature", "-1"), 2, "-1"),
    (("chat", "--seed", "-1"), 2, "-1"), (("chat", "--tokens-max", "99999999999"), 2, "tokens-max"), (("chat", "--router"), 2, "--router"),
    (("chat", "--conversation", "a b"), 2, "a b"), (("chat", "--router", "nonsense", "--script", "/dev/null"), 1, "nonsense"),
    (("chat", "--script", "/absent"), 1, "/absent"), (("model",), 2, "usage"), (("model", "describe"), 2, "usage"),
    (("model", "describe", "/absent"), 1, "/absent"), (("model", "seal", "/absent"), 1, "/absent"),
]


@pytest.mark.parametrize("arguments,code,word", USAGE, ids=[" ".join(row[0]) or "nothing" for row in USAGE])
def test_wrong_use(arguments, code, word):
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert word in done.stderr and not done.stdout


@pytest.mark.parametrize("arguments", (("--help",), ("--version",), ("chat", "--help"), ("chat", "--version"), ("model", "--help")))
def test_help(arguments):
    done = run(*arguments)
    assert done.returncode == 0 and "roost" in done.stdout and not done.stderr


def test_describe():
    done = run("model", "describe", MODEL_DIR)
    assert done.returncode == 0, done.stderr
    for words in ("folio", "parameters", "KV bytes per token", f"context {CONTEXT} tokens"):
        assert words in done.stdout


def test_seal(tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.model"):
        (tmp_path / name).write_bytes((MODEL_DIR / name).read_bytes())
    assert run("model", "seal", tmp_path).returncode == 0
    first = (tmp_path / "known_answer.json").read_bytes()
    assert json.loads(first)
    assert run("model", "seal", tmp_path).returncode == 0
    assert (tmp_path / "known_answer.json").read_bytes() == first


class Terminal:
    """roost chat as a person sees it."""

    def __init__(self, *arguments):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            os.environ["LC_ALL"] = "C.UTF-8"
            os.execv(ROOST, ["roost", *arguments])
        self.seen, self.decoder = "", codecs.getincrementaldecoder("utf-8")("replace")      # a read may end within a character

    def wait_for(self, pattern, timeout_s=30 * SLOWER):
        """Reads until the pattern was seen; forgets what was before its end."""
        deadline = time.monotonic() + timeout_s
        while not (match := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.fd], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"waited for {pattern!r}, saw {self.seen!r}"
            try:
                self.seen += self.decoder.decode(os.read(self.fd, 4096))
            except OSError:
                raise AssertionError(f"it ended before {pattern!r}, after {self.seen!r}") from None
        self.seen = self.seen[match.end():]
        return match

    def type(self, text):
        os.write(self.fd, text.encode())

    def wait_exit(self, timeout_s=20 * SLOWER):
        deadline = time.monotonic() + timeout_s
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < deadline, "it does not end"
            if select.select([self.fd], [], [], 0.05)[0]:
                try:
                    os.read(self.fd, 4096)
                except OSError:
                    time.sleep(0.01)              # its terminal is gone; it will be soon


def test_terminal(shared_cluster):
    terminal = Terminal("chat", "--router", shared_cluster.routers[0].ready["control"], "--as", "BERNARDO", "--with", "FRANCISCO",
                        "--tokens-max", "12", "--tenant", "terminal")     # of its own: nothing is cached yet
    terminal.wait_for("BERNARDO: ")
    terminal.type("Who is theer\x7f\x7fre? ∀\n")          # with a correction
    terminal.wait_for("FRANCISCO:")
    terminal.wait_for(r"\[worker-[ab] · \d of \d+ prompt tokens from cache · first token \d+ ms")
    terminal.wait_for("BERNARDO: ")
    terminal.type("\x1b[A\n")                             # what was said before, once more
    terminal.wait_for(r"\[worker-[ab] · \d\d+ of \d+ prompt tokens from cache")
    terminal.wait_for("BERNARDO: ")
    terminal.type("/quit\n")
    assert terminal.wait_exit() == 0


def test_terminal_says_who_speaks(shared_cluster):
    """With the flags of the README, and no other but where the router is."""
    terminal = Terminal("chat", "--router", shared_cluster.routers[0].ready["control"], "--as", "ROMEO", "--with", "JULIET")
    terminal.wait_for("You speak as ROMEO, JULIET answers.")
    terminal.wait_for(re.escape(SETTING_DEFAULT))
    for text in ("What shall I swear by?", "If my heart's dear love--"):
        terminal.wait_for("ROMEO: ")
        terminal.type(text + "\n")
        terminal.wait_for("JULIET:")
        terminal.wait_for(r"\[worker-[ab] · \d+ of \d+ prompt tokens from cache")
    terminal.wait_for("ROMEO: ")
    terminal.type("/quit\n")
    assert terminal.wait_exit() == 0


def test_interrupts(shared_cluster):
    """Ctrl-C cancels the reply that runs; one at the prompt leaves."""
    terminal = Terminal("chat", "--router", shared_cluster.routers[0].ready["control"], "--temperature", "100", "--tokens-max", "0",
                        "--with", "BABEL", "--seed", "66090")    # of a long reply, see test_failure.py
    terminal.wait_for("you: ")
    terminal.type("Speak.\n")
    terminal.wait_for("BABEL:")
    terminal.wait_for(".{20}")
    terminal.type("\x03")
    terminal.wait_for(r"\[cancelled\]")
    terminal.wait_for("you: ")
    terminal.type("And again.\n")
    terminal.wait_for("BABEL:")
    terminal.wait_for(".{20}")
    terminal.type("\x03")
    terminal.wait_for(r"\[cancelled\]")
    terminal.wait_for("you: ")
    terminal.type("\x03")
    assert terminal.wait_exit() in (0, 130)


def test_end_of_input_leaves(shared_cluster):
    terminal = Terminal("chat", "--router", shared_cluster.routers[0].ready["control"])
    terminal.wait_for("you: ")
    terminal.type("\x04")
    assert terminal.wait_exit() == 0


def test_steering_characters_are_not_shown(shared_cluster):
    """At such a temperature every byte comes up, escape among them."""
    done = chat(shared_cluster, "--temperature", "100", "--tokens-max", "600", "--seed", "1", text="Speak.\nMore.\n")
    assert done.returncode == 0
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\x80-\x9f\u202a-\u202e]", done.stdout)


def test_nobody_there():
    """No router answers: one clear sentence instead of silence."""
    done = run("chat", "--router", NOBODY, "--deadline", "1", "--json", text="Is anybody there?\n")
    (turn,) = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 1 and turn["error"]["code"] == "deadline" and turn["error"]["detail"]
    terminal = Terminal("chat", "--router", NOBODY)
    terminal.wait_for("you: ")
    terminal.type("Is anybody there?\n")
    terminal.wait_for(f"is a router at {NOBODY}")
    terminal.type("\x03")
    terminal.wait_for(r"\[cancelled\]")
    terminal.type("\x04")
    assert terminal.wait_exit() == 0
