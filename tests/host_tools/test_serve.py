"""``seedtune serve`` as the ``openai`` package sees it, on the exported tiny model."""

import json
import re
import socket
import threading
import time
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from command_line import call
from doc_pages import blocks_of
from seedtune.runtime import open_model
from seedtune.runtime.errors import JournalError, SeedtuneError
from serving import Limits, Models, serving
from tiny_bundle import TASK

openai = pytest.importorskip("openai", reason="needs the package openai, of the extra 'test'")

ROWS = [
    {"text": text, "label": label}
    for text in ("rain", "a cat, and then", "", "towns é ☕", "It was, as they say, long")
    for label in (1, 0)
]
CHOICE = {
    "kind": "multiple_choice",
    "template": "{premise} so",
    "choice_fields": ["first", "second"],
    "label_field": "label",
}
MESSAGES = [{"role": "user", "content": "good?"}]


@pytest.fixture(scope="module")
def model(bundle):
    with open_model(bundle) as found:
        yield found


@pytest.fixture(scope="module")
def runs(bundle, tmp_path_factory):
    """Of three tasks: one classifies, one chooses, one learned to write."""
    folder = tmp_path_factory.mktemp("runs")
    chosen = [
        {"premise": row["text"], "first": "a film", "second": "the mat", "label": row["label"]}
        for row in ROWS
    ]
    written = {"kind": "completion", "template": "{text}", "completion_field": "reply"}
    said = [{"text": row["text"], "reply": " the cat sat on the mat"} for row in ROWS]
    jobs: dict[str, tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]] = {
        "classify": (TASK, ROWS, {"estimator": "readout"}),
        "choose": (CHOICE, chosen, {"estimator": "two-point", "lr": 0.1, "eps": 0.1}),
        "write": (written, said, {"estimator": "two-point", "lr": 0.1, "eps": 0.1}),
    }
    for name, (task, rows, settings) in jobs.items():
        with (
            open_model(bundle, task=task) as model,
            model.tuner(folder / name, rows, rows[:4], steps=2, batch_size=4, **settings) as tuner,
        ):
            for _ in tuner:
                pass
            tuner.tuned()
    return [folder / name for name in jobs]


@pytest.fixture(scope="module")
def url(model, runs):
    with serving(model, runs, Limits(body=20_000, seconds=60)) as found:
        yield found


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0)


def refused(error, call, **fields):
    """The error's body."""
    with pytest.raises(error) as caught:
        call(**fields)
    return caught.value.body


def test_every_run_is_a_model_of_its_own(client, model, runs):
    names = [each.id for each in client.models.list()]
    assert names == ["hf", "hf:classify", "hf:choose", "hf:write"]
    assert client.models.retrieve("hf:write").id == "hf:write"
    twin = model.twin()
    for name, source in (("hf", None), ("hf:write", runs[2]), ("hf", None)):
        twin.reset()
        if source is not None:
            twin.load(source)
        wanted = twin.generate("It was", max_tokens=12)
        found = client.completions.create(model=name, prompt="It was", max_tokens=12, temperature=0)
        assert found.choices[0].text == "".join(wanted)
    body = refused(openai.NotFoundError, client.models.retrieve, model="other")
    assert "there is no model 'other'; there are: hf, hf:classify" in body["message"]
    error = refused(openai.NotFoundError, client.completions.create, model="hf:no", prompt="a")
    assert error["code"] == "model_not_found" and error["param"] == "model"


def test_a_completion_is_what_generate_writes(client, model):
    for asked in (
        {"max_tokens": 5, "temperature": 0},
        {"max_tokens": 20, "temperature": 1.5, "top_p": 0.8, "seed": 7},
        {"max_tokens": 20, "temperature": 0, "stop": "a"},
        {"max_tokens": 20, "temperature": 0, "stop": ["zzz", "e", "t"]},
    ):
        stop = asked.get("stop", [])
        own = {**asked, "stop": [stop] if isinstance(stop, str) else stop}
        wanted = model.generate("It was ☕", **own)
        text = "".join(wanted)
        found = client.completions.create(model="hf", prompt="It was ☕", **asked)
        (choice,) = found.choices
        reason = {"end": "stop", "stop": "stop", "max_tokens": "length"}[str(wanted.ended)]
        assert (choice.text, choice.finish_reason) == (text, reason)
        read = len(model.prompt_tokens("It was ☕"))
        written = len(wanted.tokens)
        usage = found.usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (read, written)
        assert usage.total_tokens == read + written
        streamed = {"stream": True, "stream_options": {"include_usage": True}, **asked}
        *events, last = client.completions.create(model="hf", prompt="It was ☕", **streamed)
        assert "".join(each.choices[0].text for each in events) == text
        assert events[-1].choices[0].finish_reason == reason
        assert last.choices == [] and last.usage == usage
        assert len(events) > 2 or len(text) < 2


def test_a_chat_is_written_by_the_template(client, model):
    wanted = "".join(model.generate(MESSAGES, max_tokens=12))
    asked = {"model": "hf", "messages": MESSAGES, "temperature": 0}
    found = client.chat.completions.create(**asked, max_tokens=12)
    assert found.choices[0].message.content == wanted
    assert found.choices[0].message.role == "assistant"
    stream = list(client.chat.completions.create(**asked, max_completion_tokens=12, stream=True))
    assert "".join(each.choices[0].delta.content or "" for each in stream) == wanted
    assert [each.choices[0].delta.role for each in stream] == ["assistant"] + [None] * (
        len(stream) - 1
    )
    assert {each.id for each in stream} == {stream[0].id}
    whole = client.chat.completions.create(**asked)  # as far as a text may go
    writing = model.generate(MESSAGES, max_tokens=10**6)
    assert whole.choices[0].message.content == "".join(writing)


def test_without_a_seed_draws_differ_and_with_one_they_do_not(client):
    def texts(**asked):
        return {
            client.completions.create(model="hf", prompt="It", **asked).choices[0].text
            for _ in range(3)
        }

    assert len(texts()) > 1
    assert len(texts(seed=3)) == len(texts(seed=-3)) == 1
    assert texts(seed=3) != texts(seed=4)


def test_log_probabilities_of_what_is_written(client, model):
    asked = {"model": "hf", "temperature": 0, "max_tokens": 6, "seed": 1}
    text = client.completions.create(prompt="It was", logprobs=3, **asked).choices[0]
    found = text.logprobs
    assert "".join(found.tokens) == text.text and len(found.tokens) == 6
    assert found.text_offset == [sum(map(len, found.tokens[:n])) for n in range(6)]
    for own, top in zip(found.token_logprobs, found.top_logprobs, strict=True):
        assert own == max(top.values()) < 0 and 0 < len(top) <= 3
    chat = client.chat.completions.create(
        messages=MESSAGES, logprobs=True, top_logprobs=2, **asked
    ).choices[0]
    streamed = client.chat.completions.create(
        messages=MESSAGES, logprobs=True, top_logprobs=2, stream=True, **asked
    )
    told = [event.choices[0].logprobs for event in streamed]
    said = [each for logprobs in told if logprobs is not None for each in logprobs.content]
    assert said == chat.logprobs.content and len(said) == 6
    for each in said:
        assert each.top_logprobs[0].logprob == each.logprob
        assert bytes(each.bytes).decode() == each.token
    bare = client.completions.create(prompt="It was", logprobs=0, **asked).choices[0].logprobs
    assert bare.token_logprobs == found.token_logprobs and bare.top_logprobs == [{}] * 6
    assert client.completions.create(prompt="It was", **asked).choices[0].logprobs is None


def test_log_probabilities_of_a_given_text_are_the_evaluations(client, model):
    spec = {"kind": "completion", "template": "It", "completion_field": "c", "end": False}
    tokens = model.prompt_tokens("It was great ☕")
    asked = {"model": "hf", "max_tokens": 0, "echo": True}
    with open_model(model.bundle, task=spec) as scoring:
        (scored,) = scoring.predict([{"c": " was great ☕"}])
    for prompt in ("It was great ☕", tokens):
        for count in (0, 2):
            choice = client.completions.create(prompt=prompt, logprobs=count, **asked).choices[0]
            assert choice.text == "It was great ☕" and choice.finish_reason == "length"
            first, *found = choice.logprobs.token_logprobs
            assert first is None and len(found) == len(tokens) - 1
            assert -sum(found) / len(found) == pytest.approx(scored.scores["nll"], rel=1e-5)
    tops = choice.logprobs.top_logprobs
    assert tops[0] is None
    assert all(0 < len(top) <= 2 and max(top.values()) > -6 for top in tops[1:])
    found = client.completions.create(
        model="hf", prompt=["It was", "Yes or"], echo=True, max_tokens=2, logprobs=1, temperature=0
    )
    assert [each.index for each in found.choices] == [0, 1]
    for choice, prompt in zip(found.choices, ("It was", "Yes or"), strict=True):
        assert choice.text == prompt + "".join(model.generate(prompt, max_tokens=2))
        assert len(choice.logprobs.tokens) == len(model.prompt_tokens(prompt)) + 2


def test_a_task_answers_as_predict_does(client, model, runs):
    row = {"premise": "rain", "first": "a film", "second": "the mat"}
    for name, run, rows in (
        ("hf:classify", runs[0], [{"text": row["text"]} for row in ROWS]),
        ("hf:choose", runs[1], [row, row]),
    ):
        twin = model.twin()
        twin.load(run)
        found = client.post("/predict", body={"model": name, "rows": rows}, cast_to=object)
        wanted = twin.predict(rows)
        assert [each["answer"] for each in found["data"]] == [each.answer for each in wanted]
        for each, one in zip(found["data"], wanted, strict=True):
            assert each["probabilities"] == pytest.approx(one.scores)
    for name, said in (("hf", "no task"), ("hf:write", "writes and has nothing to choose")):
        body = {"model": name, "rows": [{"text": "a"}]}
        with pytest.raises(openai.BadRequestError, match=said):
            client.post("/predict", body=body, cast_to=object)
    with pytest.raises(openai.BadRequestError, match=r"row 2.*field 'text' is missing"):
        rows = [{"text": "a"}, {"label": 1}]
        client.post("/predict", body={"model": "hf:classify", "rows": rows}, cast_to=object)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("n", 2, "n cannot be honoured with 2"),
        ("n", True, "n cannot be honoured with True"),
        ("best_of", 3, "best_of cannot be honoured"),
        ("frequency_penalty", 0.5, "frequency_penalty cannot be honoured"),
        ("logit_bias", {"5": 1}, "logit_bias cannot be honoured"),
        ("suffix", "x", "suffix cannot be honoured"),
        ("min_p", 0.1, "min_p is unknown here; known: model, max_tokens"),
        ("temperature", "warm", "temperature cannot be 'warm': it must be a number"),
        ("temperature", -1, "temperature is -1, must lie in 0 to 100"),
        ("temperature", True, "temperature cannot be True"),
        ("top_p", 0, "top_p is 0, must lie above 0"),
        ("seed", 2**64, "it must be a whole number of 64 bits"),
        ("max_tokens", -1, "max_tokens cannot be -1"),
        ("max_tokens", 0, "max_tokens is 0, which asks for nothing"),
        ("stop", ["a", 5], "stop cannot be ['a', 5]: it must be a text or a list of texts"),
        ("stop", [""], "stop[0] is ''"),
        ("stream", "yes", "stream cannot be 'yes'"),
        ("logprobs", 21, "logprobs cannot be 21: it must be a whole number from 0 to 20"),
        ("logprobs", True, "logprobs cannot be True"),
        ("stream_options", {"other": 1}, "stream_options cannot be {'other': 1}"),
        ("prompt", [], "prompt cannot be []"),
        ("prompt", [1, "a"], "prompt cannot be [1, 'a']"),
        ("prompt", [10**9], "prompt holds a token outside of 0 to 299"),
        ("prompt", "", "the prompt is empty"),
        ("prompt", "a " * 400, "the prompt has 401 tokens" ),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(client, field, value, said):
    asked = {"model": "hf", "prompt": "a", field: value}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/completions", body=asked, cast_to=object)
    body = caught.value.body
    assert isinstance(body, dict) and said in body["message"] and "\n" not in body["message"]
    if "the prompt" not in said and "holds" not in said:
        assert body["param"] == field


def test_what_asks_for_nothing_passes(client):
    fields: dict[str, Any] = {"n": 1, "best_of": 1, "frequency_penalty": 0, "logit_bias": {}}
    asked = {"model": "hf", "prompt": "a", "max_tokens": 1, "user": "me", "stop": None, **fields}
    client.post("/completions", body=asked, cast_to=object)
    chat = {"model": "hf", "messages": MESSAGES, "max_tokens": 1, "tools": [], "n": 1}
    client.post("/chat/completions", body=chat, cast_to=object)
    for wrong, said in (
        ({"messages": "hi"}, "messages cannot be 'hi'"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "narrator"),
        ({"top_logprobs": 2}, "top_logprobs asks for what logprobs: true alone brings"),
        ({"tools": [{}]}, "tools cannot be honoured"),
        ({"model": None}, "model is missing"),
    ):
        with pytest.raises(openai.BadRequestError, match=said):
            client.post("/chat/completions", body=chat | wrong, cast_to=object)


def raw(url, body, **headers):
    """Status and JSON, whatever was sent."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    given = {"Content-Type": "application/json", **named}
    try:
        with urlopen(Request(url, body or None, given), timeout=60) as answer:
            return answer.status, json.load(answer)
    except HTTPError as error:
        return error.code, json.load(error)["error"]


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (b"{", {}, 400, "the body: not JSON"),
        (b"[]", {}, 400, "the body must be a JSON object"),
        (b"[" * 9000, {}, 400, "nested too deeply"),
        (b'{"a": NaN}', {}, 400, "not JSON"),
        (b'"\xff"', {}, 400, "not UTF-8 (byte 1)"),
        (b" " * 20_001, {}, 413, "more than 20000 bytes"),
        (b"{}", {"Content_Type": "text/plain"}, 415, "Content-Type: application/json"),
        (b"{}", {}, 400, "model is missing"),
        (b'{"model": "hf", "prompt": "\\ud800"}', {}, 400, "half a character"),
        (b'{"model": "\\ud800\\u001b", "prompt": "a"}', {}, 404, r"there is no model '\ud800\x1b'"),
    ],
)
def test_bodies_that_are_none(url, body, headers, status, said):
    found, error = raw(f"{url}/completions", body, **headers)
    assert found == status and said in error["message"]


def test_paths_that_are_not_there(url):
    assert raw(f"{url}/embeddings", b"{}")[0] == 404
    assert raw(f"{url}/models", b"{}")[0] == 405


def test_who_may_ask(model):
    with serving(model, token="se cret", hosts=["127.0.0.1"]) as url:
        for sent in ({}, {"Authorization": "Bearer other"}, {"Authorization": "se cret"}):
            status, error = raw(f"{url}/models", b"", **sent)
            assert status == 401 and "Bearer TOKEN" in error["message"]
        key = {"Authorization": "Bearer se cret"}
        assert raw(f"{url}/models", b"", **key)[0] == 200
        status, error = raw(f"{url}/models", b"", Host="evil.example:80", **key)
        assert status == 400 and error["code"] == "wrong_host"
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url, api_key="x", max_retries=0).models.list()
        assert openai.OpenAI(base_url=url, api_key="se cret").models.list().data


def test_limits_of_prompt_time_and_places(model):
    limits = Limits(prompt=8, seconds=1.0, waiting=1)
    asked = {"model": "hf", "temperature": 0}
    with serving(model, limits=limits) as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        with pytest.raises(openai.BadRequestError, match=r"has \d+ tokens, at most 8 are taken"):
            client.completions.create(prompt="a b c d e f g h i", **asked)
        twin = model.twin()
        engine_text = twin.engine.text

        def slow(*arguments, **inputs):
            text = engine_text(*arguments, **inputs)
            read = text.read
            text.read = lambda tokens: (time.sleep(0.1), read(tokens))[1]
            return text

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model.engine, "text", slow)
            began = time.monotonic()
            cut = client.completions.create(prompt="It was", max_tokens=100, seed=1, **asked)
            assert cut.choices[0].finish_reason == "length" and time.monotonic() - began < 3
            assert 2 < cut.usage.completion_tokens < 20
            found: list[str] = []

            def ask():
                try:
                    client.completions.create(prompt="It was", max_tokens=100, seed=1, **asked)
                    found.append("answered")
                except openai.APIStatusError as error:
                    found.append(str(error.status_code))

            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            # One is answered until its time is over, when that of the one that waits is, too.
            assert sorted(found)[:2] == ["429", "429"] and sorted(found)[3] == "answered", found
            assert sorted(found)[2] in ("503", "answered")
        assert client.completions.create(prompt="It was", max_tokens=2, **asked).choices[0].text


def test_requests_are_answered_in_their_order_and_who_left_frees_the_place(model):
    with serving(model) as url:
        client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
        asked = {"model": "hf", "prompt": "It was", "temperature": 1.0, "seed": 5}
        first = client.completions.create(max_tokens=10**6, stream=True, **asked)
        next(iter(first))
        order: list[int] = []

        def ask(number):
            client.completions.create(max_tokens=3, **asked)
            order.append(number)

        threads = []
        for number in range(4):
            threads.append(threading.Thread(target=ask, args=(number,)))
            threads[-1].start()
            time.sleep(0.2)  # until it has arrived, on a busy machine, too
        first.close()
        for thread in threads:
            thread.join(30)
        assert order == [0, 1, 2, 3]


def test_an_error_in_the_middle_is_told_and_the_next_answer_is_right(client, model, monkeypatch):
    asked = {"model": "hf", "prompt": "It was", "max_tokens": 9, "temperature": 0}
    wanted = "".join(model.generate("It was", max_tokens=9))
    engine_text = model.engine.text

    def broken(*arguments, **inputs):
        text = engine_text(*arguments, **inputs)
        read = text.read

        def reads(tokens):
            if text.length > 5:
                raise SeedtuneError("the program fails")
            return read(tokens)

        text.read = reads
        return text

    monkeypatch.setattr(model.engine, "text", broken)
    with pytest.raises(openai.APIError, match="the program fails"):
        list(client.completions.create(stream=True, seed=1, **asked))
    with pytest.raises(openai.InternalServerError, match="the program fails"):
        client.completions.create(seed=1, **asked)
    monkeypatch.undo()
    assert client.completions.create(**asked).choices[0].text == wanted


def test_runs_that_cannot_be_served(model, runs, tmp_path):
    with pytest.raises(JournalError, match="no such run folder"):
        Models(model, [tmp_path / "none"])
    (tmp_path / "classify").symlink_to(runs[0])
    with pytest.raises(SeedtuneError, match=r"another run is called hf:classify"):
        Models(model, [runs[0], tmp_path / "classify"])


def test_the_page_works_as_it_stands(url, capsys):
    """But for the address and the run's name."""
    shown = {block.language: block.text for block in blocks_of("docs/serve.md")}
    code = shown["py"].replace("http://127.0.0.1:8000/v1", url)
    exec(code.replace("smollm2-135m:run", "hf:write"), {})
    assert capsys.readouterr().out
    found = json.loads(shown["json"])
    body = re.findall(r"-d '(.*)'", shown["bash"])[0].replace("smollm2-135m:run", "hf:classify")
    status, answer = raw(f"{url}/predict", body.encode())
    assert status == 200 and answer.keys() == found.keys()
    assert answer["data"][0].keys() == found["data"][0].keys()
    assert answer["data"][0]["probabilities"].keys() == {"0", "1"}


def test_the_command_says_what_is_wrong(bundle, tmp_path):
    def said(code, *options):
        result = call("serve", *options)
        assert result.exit_code == code, result.output
        (line,) = [each for each in result.stderr.splitlines() if each.startswith("error: ")]
        return line

    assert "so give a --token-file" in said(1, bundle.path, "--host", "0.0.0.0")
    (tmp_path / "empty").write_text("\n")
    assert "must hold a token" in said(1, bundle.path, "--token-file", tmp_path / "empty")
    assert "cannot be read" in said(1, bundle.path, "--token-file", tmp_path / "none")
    assert "no such bundle" in said(4, tmp_path / "none", "--port", 0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert "take another port" in said(1, bundle.path, "--port", port)
