"""``Model.generate`` and written predictions, on the exported tiny model."""

import numpy as np
import pytest
from seedtune.runtime import open_model
from seedtune.runtime.bundle import Bundle
from seedtune.runtime.errors import DataError, EngineError
from seedtune.runtime.scoring.values import Values
from seedtune.runtime.writing import Manner, Writer
from tiny_bundle import TASK, write_tiny_bundle
from tokenizers import Regex, Tokenizer, pre_tokenizers

COMPLETION = {"kind": "completion", "template": "{text}\nMia:", "completion_field": "reply"}
CHAT = {"kind": "chat", "messages_field": "messages", "learn": "assistant"}
MESSAGES = [{"role": "user", "content": "Was it great?"}]


@pytest.fixture(scope="module")
def model(bundle):
    with open_model(bundle, task=COMPLETION) as opened:
        yield opened


def text_of(model, prompt, **manner):
    return "".join(model.generate(prompt, **manner))


def test_the_bundle_knows_how_its_model_ends_and_chats(bundle):
    assert bundle.end_ids == (1,)
    assert bundle.chat is not None and bundle.chat.special_tokens["eos_token"] == "</s>"


def test_messages_are_written_by_the_template(model):
    rendered = "<user>Was it great?</s>\n<assistant>"
    assert model.prompt_tokens(MESSAGES) == model.bundle.tokenizer().encode(rendered).ids
    assert text_of(model, MESSAGES, max_tokens=5) == text_of(model, rendered, max_tokens=5)


@pytest.mark.parametrize("ends", [True, False])
def test_only_a_text_that_has_no_end_of_its_own_stops_at_the_line_s(bundle, ends, monkeypatch):
    manners: list[Manner] = []
    writers: list[Writer] = []
    write = Writer.write

    def noting(writer, prompt, manner):
        manners.append(manner)
        writers.append(writer)
        return write(writer, prompt, manner)

    monkeypatch.setattr(Writer, "write", noting)
    heard: list[tuple[int, int]] = []
    rows = [{"text": "good?"}, {"text": "bad?", "reply": " yes"}, {"text": "dull?"}]
    with open_model(bundle, task={**COMPLETION, "end": ends}) as model:
        model.predict(rows, lambda done, of: heard.append((done, of)))
    assert [manner.stop for manner in manners] == [() if ends else ("\n",)] * 2
    assert writers[0] is writers[1], "one writer for all rows"
    assert heard == [(1, 3), (2, 3), (3, 3)]


def test_a_question_over_which_the_tokenizer_panics_is_refused_by_name(bundle, monkeypatch):
    tokenizer = Tokenizer.from_str(bundle.tokenizer().to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"(a|aa)+$"), "isolated")
    monkeypatch.setattr(Bundle, "tokenizer", lambda own: tokenizer)
    rows = [{"text": "good?"}, {"text": "a" * 60 + "b"}]
    with (
        open_model(bundle, task={**COMPLETION, "template": "{text}"}) as model,
        pytest.raises(DataError, match=r"^row 2: the bundle's tokenizer fails on this text"),
    ):
        model.predict(rows)


def test_conversations_are_predicted_and_learned(bundle, tmp_path):
    answered = [*MESSAGES, {"role": "assistant", "content": "Yes"}]
    with open_model(bundle, task=CHAT) as model:
        written, scored = model.predict([{"messages": MESSAGES}, {"messages": answered}])
        assert isinstance(written.answer, str) and scored.answer is None
        rows = [{"messages": answered}] * 2
        with model.tuner(tmp_path / "run", rows, rows[:1], steps=2, batch_size=2) as tuner:
            assert len(list(tuner)) == 2
        model.load(tmp_path / "run")
        assert model.evaluate(rows).examples == 2


@pytest.mark.parametrize(
    ("prompt", "manner", "message"),
    [
        ("x " * 200, {}, "the prompt has .* tokens, a text here at most 128"),
        ("", {}, "the prompt is empty"),
        ("\ud800", {}, "the prompt holds half a character"),
        ([{"role": "robot", "content": "x"}], {}, "the prompt: .*role 'robot' is unknown"),
        ([], {}, "messages is an empty list"),
        ("x", {"stop": "a"}, "stop must be a list"),
        ("x", {"stop": [""]}, r"stop\[0\] is ''"),
    ],
)
def test_bad_prompts(model, prompt, manner, message):
    with pytest.raises(DataError, match=message):
        text_of(model, prompt, **manner)


def test_values_that_are_not_finite_write_nothing(model):
    original, model.values = model.values, Values(np.full(model.bundle.K, np.nan, np.float32))
    with pytest.raises(EngineError, match="hold NaN or infinity; the values in use"):
        text_of(model, "It was")
    model.values = original


def test_bundles_that_only_score_say_so(bundle, tmp_path):
    plain = write_tiny_bundle(tmp_path / "plain", task=TASK)
    assert plain.programs[0].generation is None and plain.end_ids == () and plain.chat is None
    with open_model(plain) as model, pytest.raises(DataError, match="has no chat template"):
        model.prompt_tokens(MESSAGES)


def test_a_given_text_is_as_likely_as_an_evaluation_has_it(model, bundle):
    tokens = model.prompt_tokens("It was great ☕ and the plot")
    spec = {"kind": "completion", "template": "It", "completion_field": "rest", "end": False}
    with open_model(bundle, task=spec) as scoring:
        (scored,) = scoring.predict([{"rest": " was great ☕ and the plot"}])
    nominated = [(token, 5, 7) for token in tokens[1:]]
    for found in (model.logprobs(tokens), model.logprobs(tokens, nominated)):
        assert [each.token for each in found] == tokens[1:]
        mean = -sum(each.logprob for each in found) / len(found)
        assert mean == pytest.approx(scored.scores["nll"], rel=1e-6)
    for each in found:
        assert dict(each.top)[each.token] == each.logprob and {5, 7} <= {*dict(each.top)}
        assert [logprob for _, logprob in each.top] == sorted(dict(each.top).values())[::-1]
    assert model.logprobs(tokens[:1]) == []
    with pytest.raises(DataError, match="export with --length 33"):
        model.logprobs([5] * 33)
    with pytest.raises(DataError, match=r"4 likeliest .* at most 3: .*--candidates"):
        model.logprobs([5, 6], [(1, 2, 3, 4)])


def test_a_twin_has_values_of_its_own_over_the_same_program(model, bundle):
    twin = model.twin()
    assert twin.engine is model.engine
    noise = np.random.default_rng(1).standard_normal(bundle.K, np.float32)
    twin.values = Values(bundle.values + noise)
    before = text_of(model, "It was", max_tokens=8)
    assert text_of(twin, "It was", max_tokens=8) != before
    assert text_of(model.twin(), "It was", max_tokens=8) == before
