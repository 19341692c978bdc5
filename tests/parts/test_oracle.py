"""Teachers that only answer, asked over real HTTP: answers, faults, budgets, limits, kills; and no key anywhere."""

import copy
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback

import pytest
import torch
from serving import FILLER, LanguageServer, save_model

from stillroom import _compat, zoo
from stillroom.errors import Refused
from stillroom.parts.oracle import Answer, Endpoint, Oracle, answer
from stillroom.parts.oracle.endpoint import _after
from stillroom.parts.oracle.memo import Memo
from stillroom.parts.oracle.pace import Pace
from stillroom.parts.teachers import Oracle as InTeachers

KEY = "sk-Ab3dEf6hIj9kLm2nOp5q"
PROMPTS = [f"{n}. {FILLER}" for n in range(6)]
served = pytest.mark.skipif(_compat.find_spec("transformers") is None, reason="transformers is not installed")


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    with LanguageServer(save_model(tmp_path_factory.mktemp("llama"))) as server:
        yield server


@pytest.fixture
def server(standing):
    standing.clear()
    yield standing
    standing.gone.set()


def endpoint(server, **how):
    return Endpoint(server.url, "tiny", **{"max_tokens": 8, "timeout": 5.0, **how})


def patient(server, store=None, *, how=(), **more):
    return Oracle(endpoint(server, **dict(how)), store, **{"pause": 0.01, "tries": 5, **more})


# --- answers ---------------------------------------------------------------------------------------------------------

@served
def test_the_answers_are_the_models_own_in_the_prompts_order(server):
    said = patient(server)([PROMPTS[2], PROMPTS[0], PROMPTS[2]])
    for prompt, got in zip([PROMPTS[2], PROMPTS[0], PROMPTS[2]], said, strict=True):
        text, finish, _, used = server.generate(f"<user>{prompt}\n", {"max_tokens": 8})
        assert got == Answer(text, finish, used) and text
    assert len(server.asked) == 2                                  # the same prompt is asked once
    assert server.asked[0]["model"] == "tiny" and server.keys == [None, None]
    assert InTeachers is Oracle


@served
@pytest.mark.parametrize("kind", ["chat", "completions"])
def test_log_probabilities_are_those_of_the_model(server, kind):
    (got,) = patient(server, how={"kind": kind, "logprobs": 4}.items())([FILLER])
    ids = server.words(f"<user>{FILLER}\n" if kind == "chat" else FILLER)["input_ids"]
    assert len(got.steps) == 8
    for step in got.steps:
        with torch.no_grad():
            wanted = server.net(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        top = wanted.topk(4)
        assert [t for t, _ in step.likeliest] == server.words.convert_ids_to_tokens(top.indices.tolist())
        assert torch.tensor([p for _, p in step.likeliest]).double().sub(top.values).abs().max() < 1e-4
        assert step.token == step.likeliest[0][0] and step.logprob == step.likeliest[0][1]       # greedy
        ids.append(int(top.indices[0]))


@served
def test_more_log_probabilities_than_the_server_gives_are_refused_with_the_remedy(server):
    with pytest.raises(Refused, match=r"(?s)status 400: top_logprobs must be at most 20.*ask for fewer logprobs"):
        patient(server, how={"logprobs": 21}.items())([FILLER])
    assert len(server.asked) == 1 and len(patient(server, how={"logprobs": 20}.items())([FILLER])[0].steps[0].likeliest) == 20


@served
def test_messages_sampling_and_further_entries_reach_the_server(server):
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    ask = endpoint(server, temperature=0.7, seed=5, stop=("\n\n",), more={"top_k": 3, "top_p": None})
    Oracle(ask)([talk], draw=2)
    assert server.asked == [{"model": "tiny", "messages": talk, "max_tokens": 8, "temperature": 0.7, "seed": 7, "stop": ["\n\n"],
                             "top_k": 3}]
    with pytest.raises(Refused, match="completions take a text"):
        patient(server, how={"kind": "completions"}.items())([talk])


@served
def test_what_was_answered_is_not_asked_again_unless_the_question_differs(server, tmp_path):
    first = patient(server, tmp_path / "a.db")(PROMPTS)
    assert patient(server, tmp_path / "a.db")(PROMPTS) == first and len(server.asked) == 6
    for n, how in enumerate([{"temperature": 0.5}, {"max_tokens": 9}, {"logprobs": 2}, {"kind": "completions"}, {"seed": 1}], 7):
        patient(server, tmp_path / "a.db", how=how.items())(PROMPTS[:1])
        assert len(server.asked) == n, how
    patient(server, tmp_path / "a.db")(PROMPTS[:1], draw=1)
    assert len(server.asked) == 12
    assert patient(server, tmp_path / "a.db").spent()[0] == 12


def test_a_callable_is_asked_in_turn_and_once():
    asked = []

    def shout(prompt):
        asked.append(prompt)
        return prompt.upper()

    oracle = Oracle(shout)
    assert [a.text for a in oracle(["a", "b", "a"])] == ["A", "B", "A"] and asked == ["a", "b"]
    assert [a.text for a in copy.deepcopy(oracle)(["b", "c"])] == ["B", "C"] and asked == ["a", "b", "c"]    # a copy is the same
    assert oracle.spent() == (3, 0)
    talk = [{"role": "user", "content": "hi"}]
    assert Oracle(lambda messages: Answer(messages[0]["content"], "stop", 7))([talk]) == [Answer("hi", "stop", 7)]


def test_a_callable_that_fails_stops_the_rest_and_one_that_is_late_is_asked_again():
    calls = []

    def moody(prompt):
        calls.append(prompt)
        if prompt == "wrong":
            raise ZeroDivisionError("its own fault")
        if len(calls) < 3:
            raise TimeoutError
        return prompt

    assert Oracle(moody, pause=0.0)(["late"])[0].text == "late" and len(calls) == 3
    with pytest.raises(ZeroDivisionError, match="its own fault"):
        Oracle(moody)(["wrong", "never"])
    assert calls[3:] == ["wrong"]
    with pytest.raises(Refused, match="gave a NoneType"):
        Oracle(lambda prompt: None)(["x"])


# --- faults ----------------------------------------------------------------------------------------------------------

@served
@pytest.mark.parametrize("fault", ["broken", "cut", "garbage", "empty", 503, 529, 408])
def test_a_fault_is_tried_again(server, fault):
    server.faults = [fault, fault]
    (got,) = patient(server)([FILLER])
    assert got.text == server.generate(f"<user>{FILLER}\n", {"max_tokens": 8})[0] and len(server.asked) == 3


@served
def test_a_server_that_hangs_is_left_after_the_time_and_asked_again(server):
    server.faults = ["hang"]
    began = time.monotonic()
    (got,) = patient(server, how={"timeout": 0.3}.items())([FILLER])
    assert got.text and 0.3 <= time.monotonic() - began < 4 and len(server.asked) == 2


@served
def test_retry_after_is_waited_for_by_all(server):
    server.faults = ["busy:0.7"]
    patient(server, at_once=1)(PROMPTS[:3])
    assert server.at[1] - server.at[0] >= 0.7 and len(server.asked) == 4


@served
def test_pauses_double(server):
    server.faults = ["broken"] * 4
    patient(server, pause=0.1)([FILLER])
    gaps = [b - a for a, b in zip(server.at, server.at[1:])]
    for gap, pause in zip(gaps, [0.1, 0.2, 0.4, 0.8], strict=True):
        assert pause / 2 <= gap <= pause + 0.4


@served
def test_it_gives_up_and_keeps_what_was_said(server, tmp_path):
    server.faults = [None, None, *["broken"] * 3]
    with pytest.raises(Refused, match=r"tiny does not answer: status 500: the machine is on fire \(tries: 3\); 2 of 3 new"):
        patient(server, tmp_path / "a.db", tries=3, at_once=1)(PROMPTS[:3])
    assert len(server.asked) == 5
    server.faults = []
    assert len(patient(server, tmp_path / "a.db")(PROMPTS)) == 6 and len(server.asked) == 9
    server.faults = [None] * 9 + ["busy:500"]
    with pytest.raises(Refused, match="asks us to wait 500 s"):
        patient(server)(PROMPTS[:1])


@served
@pytest.mark.parametrize("fault", [400, 404, "denied", "moved"])
def test_what_will_not_change_is_not_tried_again(server, fault):
    server.faults = [fault]
    with pytest.raises(Refused):
        patient(server)([FILLER])
    assert len(server.asked) == 1


def test_nobody_there_is_said_with_the_address():
    with pytest.raises(Refused, match=r"is there a server at http://127\.0\.0\.1:9/v1"):
        Oracle(Endpoint("http://127.0.0.1:9/v1", "x"), tries=2, pause=0.0)(["hi"])


def test_retry_after_may_be_a_date():
    assert _after("7") == 7 and _after(None) is None and _after("soon") is None and _after("-3") == 0
    then = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 90))
    assert 85 < _after(then) <= 90


# --- budget and pace -------------------------------------------------------------------------------------------------

@served
def test_no_request_is_sent_beyond_the_budget_over_all_runs(server, tmp_path):
    server.faults = [None, "broken"]
    with pytest.raises(Refused, match=r"4 of 4 requests are spent or set aside; 3 of 6 new answers are kept"):
        patient(server, tmp_path / "a.db", requests=4, at_once=1)(PROMPTS)
    assert len(server.asked) == 4                                   # the failed one is counted
    with pytest.raises(Refused, match="does not reach"):
        patient(server, tmp_path / "a.db", requests=4)(PROMPTS)
    assert len(server.asked) == 4
    assert len(patient(server, tmp_path / "a.db", requests=7, at_once=3)(PROMPTS)) == 6 and len(server.asked) == 7


@served
def test_tokens_are_set_aside_before_and_given_back_after(server, tmp_path):
    ask = endpoint(server)
    needs = ask.most(ask.question(PROMPTS[0]))
    (got,) = Oracle(ask, tmp_path / "a.db")(PROMPTS[:1])
    assert 0 < got.used < needs                                     # no token is less than a byte
    oracle = Oracle(ask, tmp_path / "a.db", tokens=got.used + needs - 1)
    assert oracle.spent() == (1, got.used)
    with pytest.raises(Refused, match=f"{got.used} of {got.used + needs - 1} tokens"):
        oracle(PROMPTS[1:2])                                        # it might just go over
    assert len(server.asked) == 1
    Oracle(ask, tmp_path / "a.db", tokens=got.used + needs)(PROMPTS[1:2])
    limit = 5 * got.used + needs + 30                               # room for a few at a time: the rest waits, and then fits
    said = Oracle(ask, tmp_path / "b.db", tokens=limit)(PROMPTS)
    used = Oracle(ask, tmp_path / "b.db").spent()[1]
    assert used == sum(a.used for a in said) <= limit and server.most <= 4


@served
def test_an_unknown_fate_keeps_what_was_set_aside_and_a_plain_refusal_does_not(server, tmp_path):
    ask = endpoint(server, timeout=0.3)
    needs = ask.most(ask.question(FILLER))
    for fault, lost in (("hang", needs), ("cut", needs), ("broken", 0), ("busy:0.05", 0)):
        server.clear()
        server.faults = [fault]
        oracle = Oracle(ask, tmp_path / f"{fault[:4]}.db", pause=0.01)
        (got,) = oracle([FILLER])
        assert oracle.spent() == (2, got.used + lost), fault


@served
def test_requests_and_tokens_a_minute_are_kept(server):
    patient(server, requests_a_minute=600)(PROMPTS)
    assert all(b - a > 0.09 for a, b in zip(server.at, server.at[1:])), server.at          # a tenth of a second each
    server.clear()
    ask = endpoint(server)
    needs = ask.most(ask.question(PROMPTS[0]))
    Oracle(ask, tokens_a_minute=needs * 300, at_once=1)(PROMPTS)
    used = [server.generate(f"<user>{p}\n", {"max_tokens": 8})[3] for p in PROMPTS]
    assert server.at[-1] - server.at[0] >= 0.9 * 0.2 * sum(used[:-1]) / needs    # a fifth of a second for what is needed
    with pytest.raises(Refused, match="a minute are allowed"):
        Oracle(ask, tokens_a_minute=needs - 1)(PROMPTS[:1])


def test_pace_spreads_and_waits():
    pace = Pace(requests=60, tokens=600)
    assert pace.left() == 0
    pace.charge(50)
    assert 4.9 < pace.left() <= 5                                   # 50 tokens at 10 a second; a request at one
    pace.give_back(40)
    assert 0.9 < pace.left() <= 1
    pace.hold(30)
    assert 29 < pace.left() <= 30
    assert Pace().left() == 0


@served
def test_several_are_under_way_at_once_and_no_more_than_asked_for(server):
    server.delay = 0.6
    began = time.monotonic()
    patient(server, at_once=6)(PROMPTS)
    assert 3 <= server.most <= 6 and time.monotonic() - began < 6 * 0.6
    server.clear()
    server.delay = 0.3
    patient(server, at_once=2)(PROMPTS[:4])
    assert server.most == 2


# --- on disk ---------------------------------------------------------------------------------------------------------

ASKS = """
import sys
from stillroom.parts.oracle import Endpoint, Oracle
url, store, number = sys.argv[1:]
said = Oracle(Endpoint(url, "tiny", max_tokens=8), store, at_once=3)([f"row {n}" for n in range(int(number))])
print(*(repr(a.text) for a in said), sep="\\n")
"""


@served
def test_after_a_kill_it_goes_on_row_by_row(server, tmp_path):
    server.delay = 0.05
    store, words = tmp_path / "a.db", [sys.executable, "-c", ASKS, server.url, str(tmp_path / "a.db"), "40"]
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while time.monotonic() < until:                                 # read beside the writer
        if store.exists() and sqlite3.connect(store, timeout=10).execute("SELECT count(*) FROM sqlite_master").fetchone()[0] >= 2:
            kept = sqlite3.connect(store, timeout=10).execute("SELECT count(*) FROM answers").fetchone()[0]
            if kept >= 8:
                break
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    kept = sqlite3.connect(store).execute("SELECT count(*) FROM answers").fetchone()[0]
    time.sleep(0.2)
    before = len(server.asked)
    assert 8 <= kept < 40 and before <= kept + 3
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    rows = [f"row {n}" for n in range(40)]
    assert done.stdout.splitlines() == [repr(server.generate(f"<user>{r}\n", {"max_tokens": 8})[0]) for r in rows]
    assert len(server.asked) - before == 40 - kept                  # what was kept was not asked again
    assert Oracle(endpoint(server), store).spent()[0] >= len(server.asked)


def test_a_damaged_answer_is_asked_again_and_another_file_is_refused(tmp_path):
    calls = []
    file = tmp_path / "deep" / "a.db"
    oracle = Oracle(lambda p: calls.append(p) or p * 2, file, name="twice")
    oracle(["a", "b"])
    link = sqlite3.connect(file)
    link.execute("UPDATE answers SET answer = replace(answer, 'aa', 'ax')")
    link.commit()
    link.close()
    assert [a.text for a in oracle(["a", "b"])] == ["aa", "bb"] and calls == ["a", "b", "a"]
    (tmp_path / "text.db").write_text("no database at all, but long enough to be read as one" * 9)
    link = sqlite3.connect(tmp_path / "other.db")
    link.execute("CREATE TABLE mine (x)")
    link.close()
    for name in ("text.db", "other.db"):
        with pytest.raises(Refused, match="holds no answers"):
            Oracle(str, tmp_path / name, name="x")(["a"])


def test_a_memo_is_read_by_many_while_one_writes(tmp_path):
    file, seen, stop = tmp_path / "a.db", [], threading.Event()
    with Memo(file) as memo:
        memo.put("0", "q", Answer("first"))

    def watch():
        while not stop.is_set():
            with Memo(file) as other:
                seen.append(len(other.get([str(n) for n in range(700)])))

    watchers = [threading.Thread(target=watch) for _ in range(3)]
    for w in watchers:
        w.start()
    with Memo(file) as memo:
        for n in range(100):
            memo.put(str(n), "q", Answer(f"text {n}\n", "stop", n))
    stop.set()
    for w in watchers:
        w.join()
    assert seen and min(seen) >= 1
    with Memo(file) as memo:
        assert memo.get(["99", "100"]) == {"99": Answer("text 99\n", "stop", 99)}


def test_an_answer_survives_the_disk():
    said = Answer("Ω \"x\"\n", "length", 9, (answer.Step("Ω", -0.5, (("Ω", -0.5), ("ω", -2.0))), answer.Step("", -1e-9)))
    assert answer.read(answer.write(said)) == said


# --- the key ---------------------------------------------------------------------------------------------------------

@served
def test_the_key_is_sent_and_is_nowhere_else(server, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    seen = []
    for fault in (None, "broken", 418, "denied", "moved", 503, "cut"):
        server.clear()
        server.faults = [fault]
        oracle = patient(server, tmp_path / "a.db", how={"key": "TEACHER_KEY"}.items(), tries=2 if fault == "broken" else 1)
        seen += [repr(oracle), repr(oracle.ask), str(vars(oracle))]
        try:
            seen.append(repr(oracle([f"{fault} {FILLER}"])))
        except Refused as error:
            seen += traceback.format_exception(error)
        assert set(server.keys) == {f"Bearer {KEY}"}
    assert any("fault 418 for Bearer …" in s for s in seen)         # what a server repeats is crossed out
    seen += [r.getMessage() for r in caplog.records]
    assert any("again in" in s for s in seen)
    assert not any(KEY in s or KEY[3:11] in s for s in seen)
    for file in tmp_path.iterdir():
        assert KEY.encode() not in file.read_bytes(), file


@served
def test_a_server_that_answers_with_the_key_does_not_bring_it_into_the_memo(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    server.faults = ["echo"]
    (got,) = patient(server, tmp_path / "a.db", how={"key": "TEACHER_KEY"}.items())([FILLER])
    assert got.text == "You are Bearer …."
    assert not any(KEY.encode() in file.read_bytes() for file in tmp_path.iterdir())
    monkeypatch.setenv("TEACHER_KEY", "e")                          # no secret, and a letter of many words
    (got,) = patient(server, how={"key": "TEACHER_KEY"}.items())([FILLER])
    assert got.text == server.generate(f"<user>{FILLER}\n", {"max_tokens": 8})[0] and server.keys[1] == "Bearer e"


def test_a_key_in_place_of_a_name_is_refused_unseen(monkeypatch):
    for wrong in (KEY, "gsk_abc123", "Bearer x"):
        with pytest.raises(Refused, match="is not shown") as told:
            Endpoint("http://localhost:1/v1", "m", key=wrong)
        assert wrong not in str(told.value)
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(Refused, match="NO_SUCH_KEY is not set"):
        Oracle(Endpoint("http://localhost:1/v1", "m", key="NO_SUCH_KEY"))(["x"])
    monkeypatch.setenv("NO_SUCH_KEY", "sk-one\nX-Other: two")
    with pytest.raises(Refused, match="does not read like a key") as told:
        Oracle(Endpoint("http://localhost:1/v1", "m", key="NO_SUCH_KEY"))(["x"])
    assert "sk-one" not in "".join(traceback.format_exception(told.value))
    with pytest.raises(Refused, match="holds a password") as told:
        Endpoint("https://me:secret@host/v1", "m")
    assert "secret" not in str(told.value)


# --- names -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("how", [{"url": "host/v1"}, {"url": "http://h/v1?key=1"}, {"model": ""}, {"kind": "talk"},
                                 {"max_tokens": 0}, {"logprobs": -1}, {"timeout": 0}])
def test_an_endpoint_that_cannot_be_is_refused(how):
    with pytest.raises(Refused):
        Endpoint(**{"url": "http://h/v1", "model": "m", **how})


@pytest.mark.parametrize("how", [{"store": "x.db"}, {"tokens": 5}, {"tokens_a_minute": 5}, {"at_once": -1}, {"tries": 0},
                                 {"pause": -1.0}])
def test_an_oracle_that_cannot_be_is_refused(how):
    with pytest.raises(Refused):
        Oracle(str, **how)


@served
def test_a_spec_names_an_endpoint_or_a_callable(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = "store=b.db&max_tokens=4&logprobs=2&requests=9&stop=end&at_once=2"
    made = zoo.actor("Oracle", f"oracle:{server.url}#org/tiny:2b?{options}")
    assert made.ask == Endpoint(server.url, "org/tiny:2b", max_tokens=4, logprobs=2, stop=("end",))
    assert made([FILLER])[0].text and (tmp_path / "b.db").exists() and made.most == (9, 0) and made.at_once == 2
    (tmp_path / "own.py").write_text("def ask(prompt):\n    return prompt[::-1]\n")
    own = zoo.actor("Oracle", "oracle:file:own.py:ask")
    assert own(["abc"])[0].text == "cba" and (tmp_path / "answers.db").exists()
    for wrong, said in (("oracle:http://h/v1", "name of a model"), ("timm:x", "names no oracle"),
                        ("oracle:http://h/v1#m?keys=A", "did you mean"), ("oracle:file:own.py:ask?top_p=0", "no option")):
        with pytest.raises(Refused, match=said):
            zoo.actor("Oracle", wrong)
    with pytest.raises(Refused, match="answers in words"):
        zoo.model("oracle:http://h/v1#m")


def test_the_question_is_kept_beside_the_answer(tmp_path):
    Oracle(str.upper, tmp_path / "a.db", name="up")(["why"])
    (asked,) = sqlite3.connect(tmp_path / "a.db").execute("SELECT question FROM answers").fetchone()
    assert json.loads(asked) == {"teacher": "up", "kind": "callable", "draw": 0, "asked": {"prompt": "why"}}
