import gzip
import json
from collections import Counter

import pyarrow as pa
import pytest
from seedtune.host_tools.data import datasets
from seedtune.host_tools.data.datasets import normalised
from seedtune.host_tools.data.named_tasks import balanced, load_task, split
from seedtune.runtime.bundle import Bounds
from seedtune.runtime.errors import DataError
from seedtune.runtime.tasks import task_from_spec
from tokenizers import Tokenizer


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Stands in for fetch(): each name is a file that the test writes."""
    monkeypatch.setattr(datasets, "fetch", lambda name: tmp_path / name)
    return tmp_path


def write_arrow(file, rows):
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def test_sms_messages_swallowed_by_an_open_quote_are_recovered(files):
    (files / "sms-spam").write_text(
        ",spam,text\n"
        "0,0,plain message\n"
        '1,0,"quoted, with comma"\n'
        '2,1,"first line\nsecond line of the same"\n'
        '3,0,"begins ""here"" ..\nham\tswallowed one\nspam\tswallowed two\nham\tlast"\n'
        "4,1,after\n",
        newline="",
    )
    assert [(row["label"], row["text"]) for row in datasets.sms_messages()] == [
        ("ham", "plain message"),
        ("ham", "quoted, with comma"),
        ("spam", "first line\nsecond line of the same"),
        ("ham", 'begins "here" ..'),
        ("ham", "swallowed one"),
        ("spam", "swallowed two"),
        ("ham", "last"),
        ("spam", "after"),
    ]


def test_movie_sentences_lose_test_sentences_and_near_neutral_ones(files):
    (files / "movie-reviews").write_text(
        "id\tsentiment\ttext\r\n"
        "1\t2.5\tIt's a charming journey.\r\n"  # in the test set, spelt otherwise
        "2\t0.5\tJust good enough\r\n"
        "3\t-0.5\tJust bad enough\r\n"
        "4\t0.4999\tNeither\r\n"
        "5\t-3\tDreadful\r\n",
        newline="",
    )
    write_arrow(files / "sst2", [{"sentence": "it 's a charming journey . ", "label": 1}])
    assert datasets.movie_sentiment() == [
        {"text": "Just good enough", "label": "1"},
        {"text": "Just bad enough", "label": "0"},
        {"text": "Dreadful", "label": "0"},
    ]
    assert datasets.sst2_validation() == [{"text": "it 's a charming journey .", "label": "1"}]


def test_movie_file_of_another_shape_names_the_row(files):
    (files / "movie-reviews").write_text("id\tsentiment\ttext\n1\tnot a number\ttext\n")
    with pytest.raises(DataError, match=r"movie-reviews:2: expected id, score and text"):
        datasets.movie_sentences()


def test_damaged_arrow_file(files):
    (files / "sst2").write_bytes(b"nonsense that is no Arrow stream")
    with pytest.raises(DataError, match="not an Arrow stream"):
        datasets.sst2_validation()


def test_boolq_train_has_one_row_per_question_and_no_title(files):
    query = "Title -- Some -- text.\nWith two lines.\nQuestion: is it so?\nAnswer:"
    document = {"query": query, "choices": ["yes", "no"], "gold": 1}
    lines = [{"doc": document, "idx": 0}, {"doc": document, "idx": 1}]
    (files / "boolq-train").write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    expected = {
        "passage": "Some -- text.\nWith two lines.",
        "question": "Is it so?",
        "label": "0",
    }
    assert datasets.boolq_train() == [expected]
    write_arrow(
        files / "boolq", [{"question": "is it so", "answer": True, "passage": expected["passage"]}]
    )
    assert datasets.boolq_validation() == [{**expected, "label": "1"}]


def test_copa_prompt_joins_premise_and_choice(files):
    write_arrow(
        files / "copa",
        [
            {
                "premise": "The man turned on the faucet. ",
                "choice1": "The toilet filled.",
                "choice2": "I got wet.",
                "question": "effect",
                "label": 1,
            },
            {
                "premise": "He left.",
                "choice1": "It was late.",
                "choice2": "Is it?",
                "question": "cause",
                "label": 0,
            },
        ],
    )
    first, second = datasets.copa_validation()
    assert first["prompt"] == "The man turned on the faucet so"
    assert (first["choice1"], first["choice2"]) == ("the toilet filled.", "I got wet.")
    assert second["prompt"] == "He left because"


def said(sender, *texts):
    return [{"sender": sender, "text": text, "timestamp": "2018"} for text in texts]


def test_chat_replies_are_turns_of_one_sender_in_order_of_time(files):
    later = [said("me", "hello"), said("you", "hi", "and you? "), said("me", "fine", "thanks")]
    earlier = [
        said("you", "", " "),
        said("me", "are you there?"),  # the other said nothing
        said("you", "yes"),
        said("me", " "),
        said("you", "well?"),
        [],
        said("me", "no"),
        said("me", "answers itself"),
    ]
    chats = {
        "a": {"messages": later, "start": "2018-06"},
        "b": {"messages": earlier, "start": "2018-05"},
    }
    (files / "chitchat").write_text(json.dumps(chats))
    assert datasets.chat_replies("me") == [
        {"before": "well?", "reply": "no", "chat": 0},
        {"before": "and you?", "reply": "fine\nthanks", "chat": 1},
    ]


def test_chats_of_another_shape_are_named(files):
    (files / "chitchat").write_text('{"a": {"messages": []}}')
    with pytest.raises(DataError, match=r"chitchat: not chats of turns"):
        datasets.chat_replies()


def test_balanced_keeps_the_rarest_label_whole_and_the_order():
    rows = [{"label": label, "n": n} for n, label in enumerate("hhhshhsh")]
    kept = balanced(rows)
    assert [row["n"] for row in kept] == [0, 1, 3, 6]


def test_normalised_ignores_case_spacing_and_punctuation():
    assert normalised("It 's  GOOD , really!") == normalised("it's good... Really")
    assert normalised("it is good") != normalised("it is not good")


def test_split_is_disjoint_fixed_and_free_of_repeats():
    rows = [{"text": f"message {number % 90}"} for number in range(100)]
    train, test = split(rows, 40, ["text"])
    assert len(test) == 40
    assert not {row["text"] for row in train} & {row["text"] for row in test}
    assert 50 <= len(train) <= 60
    assert (train, test) == split(rows, 40, ["text"])
    # Fixed for ever: results that were published rest on it.
    assert [row["text"] for row in split(rows, 3, ["text"])[1]] == SPLIT_OF_THREE


SPLIT_OF_THREE = ["message 9", "message 58", "message 80"]


def test_unknown_task_lists_the_known():
    with pytest.raises(DataError, match=r"unknown task 'sst3'; known: sst2, "):
        load_task("sst3")


@pytest.mark.slow
def test_published_counts():
    movies = datasets.movie_sentences()
    assert len(movies) == 10_605
    tested = {normalised(row["text"]) for row in datasets.sst2_validation()}
    known = {normalised(row["text"]) for row in movies}
    overlap = sum(normalised(row["text"]) in known for row in datasets.sst2_validation())
    assert overlap == 732
    train = datasets.movie_sentiment()
    assert Counter(row["label"] for row in train) == {"1": 4_622, "0": 4_731}
    assert not {normalised(row["text"]) for row in train} & tested
    shown = {normalised(row["text"]) for row in load_task("sst2-shown").spec["demonstrations"]}
    assert len(shown) == 2 and not shown & (known | tested)
    assert Counter(row["label"] for row in datasets.sms_messages()) == {"ham": 4_827, "spam": 747}
    assert len(datasets.boolq_train()) == 9_427


@pytest.mark.slow
def test_chat_splits_by_time_without_repeats(smollm2):
    data = load_task("chat")
    assert (len(data.train), len(data.test)) == (5_363, 1_386)
    assert max(row["chat"] for row in data.train) < min(row["chat"] for row in data.test)
    pairs = [{(row["before"], row["reply"]) for row in part} for part in (data.train, data.test)]
    assert not pairs[0] & pairs[1]
    bounds = Bounds(probes=2, rows=16, length=64, positions=256, candidates=8)
    tokenizer = Tokenizer.from_str(smollm2.tokenizer_json.decode())
    task = task_from_spec(data.spec, tokenizer, bounds, pad_id=2, on_long="truncate")
    assert all(len(task.encode(row, "chat").positions) <= 32 for row in data.test)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("sst2", 9353, 872),
        ("sms-spam", 1138, 272),
        ("boolq", 9427, 3270),
        ("cb", 28, 28),
        ("copa", 50, 50),
    ],
)
def test_named_task_fits_the_model(name, train, test, smollm2):
    data = load_task(name)
    assert (len(data.train), len(data.test)) == (train, test)
    bounds = Bounds(probes=2, rows=16, length=2048, positions=64, candidates=8)
    tokenizer = Tokenizer.from_str(smollm2.tokenizer_json.decode())
    task = task_from_spec(data.spec, tokenizer, bounds, pad_id=2)
    labels = {row["label"] for row in data.train}
    assert labels == {row["label"] for row in data.test}
    for row in data.train[:50] + data.test[:50]:
        assert task.encode(row, name).gold in range(len(labels))
