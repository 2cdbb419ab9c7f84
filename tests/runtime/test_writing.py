"""Writing: choice of tokens, whole characters, stop texts, ends, and what is read again."""

from types import SimpleNamespace

import numpy as np
import pytest
from seedtune.runtime.engines import Text
from seedtune.runtime.errors import DataError
from seedtune.runtime.writing import Manner, Writer
from seedtune.runtime.writing.choose import GROWTH, LONGEST, choose, without_repeats
from seedtune.runtime.writing.write import Pieces
from tiny_bundle import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
END = 1


class Script(Text):
    """Says ``answer`` after the prompt, then END; notes what it is given to read."""

    def __init__(self, prompt, answer, bound=1000):
        self.bound, self.length = bound, 0
        self.reads: list[int] = []
        self._tokens = [*prompt, *TOKENIZER.encode(answer).ids, END]

    def read(self, tokens):
        self.reads.append(len(tokens))
        self.length += len(tokens)
        logits = np.zeros(384, np.float32)
        logits[self._tokens[self.length]] = 50.0
        return logits

    def rewind(self, length):
        self.length = length


def prompt():
    return list(TOKENIZER.encode("It was").ids)


def pieces_of(answer, manner, bound=1000):
    writing = Writer(Script(prompt(), answer, bound), TOKENIZER, [END]).write(prompt(), manner)
    return list(writing), writing.ended


@pytest.mark.parametrize(
    "answer",
    [" great", " café ☕ 𝄞 ok", "👩‍👩‍👧 and so on", "", "naïve", "line\nline"],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_pieces_are_whole_characters_and_add_up(answer, temperature):
    pieces, ended = pieces_of(answer, Manner(max_tokens=200, temperature=temperature))
    assert "".join(pieces) == answer
    assert ended == "end"
    for piece in pieces:
        assert piece and "�" not in piece
        piece.encode("utf-8")


@pytest.mark.parametrize(
    ("answer", "stop", "shown"),
    [
        ("good plot\nand more", ("\n",), "good plot"),
        ("one two three", ("wo th", "three"), "one t"),
        ("aaab", ("aab",), "a"),
        ("ends in half of it: sto", ("stop",), "ends in half of it: sto"),
        ("stop at once", ("stop",), ""),
        ("café", ("é",), "caf"),
    ],
)
def test_a_stop_text_ends_before_itself(answer, stop, shown):
    pieces, ended = pieces_of(answer, Manner(stop=stop))
    assert "".join(pieces) == shown
    assert ended == ("end" if shown == answer else "stop")


def test_the_text_ends_where_tokens_or_the_bundle_end():
    long = "the film was great and the plot was good"
    ids = TOKENIZER.encode(long).ids
    pieces, ended = pieces_of(long, Manner(max_tokens=3))
    assert (ended, "".join(pieces)) == ("max_tokens", TOKENIZER.decode(ids[:3]))
    pieces, ended = pieces_of(long, Manner(), bound=len(prompt()) + 2)
    assert (ended, "".join(pieces)) == ("bound", TOKENIZER.decode(ids[:2]))


def test_half_a_character_at_the_end_is_not_shown():
    ids = TOKENIZER.encode("ok 𝄞").ids
    pieces = Pieces(TOKENIZER, prompt())
    shown = "".join(pieces.add(token) for token in ids[:-1])
    assert shown + pieces.rest() == "ok "


def test_draws_follow_the_probabilities_the_seed_and_the_place():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    manner = Manner(temperature=1.0, seed=5)
    drawn = [choose(logits, manner, place) for place in range(4000)]
    assert drawn == [choose(logits, manner, place) for place in range(4000)]
    assert drawn != [choose(logits, Manner(temperature=1.0, seed=6), p) for p in range(4000)]
    shares = np.bincount(drawn, minlength=4) / 4000
    assert np.abs(shares - [0.5, 0.3, 0.15, 0.05]).max() < 0.03
    # What is drawn at a place must stay, on every machine, in every version.
    assert drawn[:20] == [1, 1, 2, 1, 0, 2, 0, 0, 1, 0, 0, 0, 1, 1, 2, 2, 0, 2, 0, 0]


def test_top_p_leaves_the_likeliest_alone():
    logits = np.log(np.array([0.05, 0.5, 0.15, 0.3], np.float32))
    for top_p, allowed in ((0.4, {1}), (0.79, {1, 3}), (0.9, {1, 3, 2}), (1.0, {0, 1, 2, 3})):
        manner = Manner(temperature=1.0, top_p=top_p)
        assert {choose(logits, manner, place) for place in range(500)} == allowed
    assert choose(logits, Manner(temperature=0.01), 7) == 1


def test_a_writer_reads_only_what_is_new():
    text = Script(prompt(), " great and the plot was good")
    writer = Writer(text, TOKENIZER, [END])
    first = writer.write(prompt(), Manner(max_tokens=4))
    list(first)
    assert text.reads == [len(prompt()), 1, 1, 1]
    text.reads.clear()
    longer = [*prompt(), *first.tokens, *TOKENIZER.encode(" plot").ids]
    list(writer.write(longer, Manner(max_tokens=1)))
    assert text.reads == [len(longer) - len(prompt()) - 3]
    text.reads.clear()
    list(writer.write(prompt(), Manner(max_tokens=1)))
    assert text.reads == [1], "the last token is read again for its logits"


def test_an_answer_that_was_left_cannot_be_gone_on_with():
    writer = Writer(Script(prompt(), " great and good"), TOKENIZER, [END])
    first = writer.write(prompt(), Manner())
    next(first)
    next(writer.write(prompt(), Manner()))
    with pytest.raises(DataError, match="left for another"):
        next(first)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"seed": -1}, "seed is -1"),
        ({"repetition_penalty": -1.0}, "repetition_penalty is -1.0"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty is nan"),
        ({"stop": ("ok", "")}, r"stop\[1\] is ''"),
    ],
)
def test_a_manner_that_makes_no_sense(bad, message):
    with pytest.raises(DataError, match=message):
        Manner(**bad)


def test_prompts_that_leave_nothing_to_write():
    writer = Writer(Script(prompt(), "x", bound=3), TOKENIZER, [END])
    with pytest.raises(DataError, match="the prompt is empty"):
        writer.write([], Manner())
    with pytest.raises(DataError, match=r"has 5 tokens.* at most 3.*--context"):
        writer.write([1, 2, 3, 4, 5], Manner())


class TestRepeats:
    """What would go on as the text did before is less likely, the more so the longer it did."""

    LOGITS = np.zeros(8, np.float32)

    def taken(self, *written, penalty=1.0):
        found = without_repeats(self.LOGITS, written, penalty)
        assert not self.LOGITS.any()
        return {token: -float(each) for token, each in enumerate(found) if each}

    def test_a_new_way_on_costs_nothing(self):
        assert self.taken() == self.taken(1) == self.taken(1, 2, 3) == {}
        assert self.taken(1, 2, 3, 1, penalty=0) == {}

    def test_it_grows_with_what_is_repeated_up_to_a_bound(self):
        assert self.taken(1, 2, 3, 1) == {2: 1.0}
        assert self.taken(1, 2, 3, 1, 2) == {3: GROWTH}
        assert self.taken(5, 2, 3, 1, 2) == {3: 1.0}
        assert self.taken(1, 2, 3, 1, 2, penalty=0.5) == {3: 0.5 * GROWTH}
        assert self.taken(*[4] * 200) == {4: pytest.approx(GROWTH ** (LONGEST - 1))}

    def test_of_several_places_the_likest_counts(self):
        assert self.taken(1, 2, 3, 6, 2, 3, 1, 2) == {3: GROWTH}
        assert self.taken(1, 2, 7, 6, 2, 3, 1, 2) == {7: GROWTH, 3: 1.0}

    def test_a_loop_ends_and_only_what_learned_to_write_has_it_by_default(self):
        class Looping(Script):
            """Says one phrase again and again, and would rather do so than end."""

            def read(self, tokens):
                self.length += len(tokens)
                logits = np.zeros(384, np.float32)
                logits[10 + self.length % 4], logits[END] = 6.0, 3.0
                return logits

        for part, asked, ended in (
            (None, None, "max_tokens"),
            (SimpleNamespace(writes=False), None, "max_tokens"),
            (SimpleNamespace(writes=True), None, "end"),
            (SimpleNamespace(writes=True), 0.0, "max_tokens"),
            (None, 1.0, "end"),
        ):
            if part is not None:
                part.mixed_next = lambda logits, tokens: logits
            writer = Writer(Looping(prompt(), ""), TOKENIZER, [END], part=part)
            writing = writer.write(prompt(), Manner(max_tokens=40, repetition_penalty=asked))
            list(writing)
            assert writing.ended == ended, (part, asked)
            assert ended == "max_tokens" or len(writing.tokens) < 12


def test_log_probabilities_are_the_models_own():
    text = Script(prompt(), " great and great and")
    manner = Manner(temperature=0.5, seed=3, repetition_penalty=9.0)
    writing = Writer(text, TOKENIZER, [END]).write(prompt(), manner, logprobs=2)
    list(writing)
    assert [each.token for each in writing.logprobs] == writing.tokens
    sure = float(-np.log(1 + 383 * np.exp(-50)))
    for each in writing.logprobs:
        assert each.logprob == pytest.approx(sure, abs=1e-6)
        assert each.top[0] == (each.token, each.logprob) and len(each.top) == 2
        assert each.top[1][1] == pytest.approx(sure - 50, abs=1e-4)
    bare = Writer(text, TOKENIZER, [END]).write(prompt(), manner)
    list(bare)
    assert bare.tokens == writing.tokens and bare.logprobs == []


def test_the_likeliest_are_read_one_by_one_and_once():
    answer = " great and the plot was good"
    text = Script(prompt(), answer)
    writer = Writer(text, TOKENIZER, [END])
    whole = [*prompt(), *TOKENIZER.encode(answer).ids]
    found = list(writer.likeliest(whole, 1))
    assert [each for (each,) in found][len(prompt()) - 1 :] == [*whole[len(prompt()) :], END]
    assert text.reads == [1] * len(whole)
    text.reads.clear()
    other = [*whole[:-1], 5]
    assert list(writer.likeliest(other, 1))[:-1] == found[:-1] and text.reads == [1]
    text.reads.clear()
    list(writer.write(whole, Manner(max_tokens=1)))
    assert text.reads == [1], "what was read one by one is not read again"
    list(writer.write(prompt(), Manner(max_tokens=1)))
    text.reads.clear()
    assert list(writer.likeliest(whole, 1)) == found
    assert len(text.reads) == len(whole) - len(prompt()) + 1
    for count in (-1, 21):
        with pytest.raises(DataError, match=f"{count} likeliest tokens"):
            list(writer.likeliest(whole, count))


@pytest.mark.parametrize("tokens", [0, 3])
def test_who_leaves_ends_it_between_two_tokens(tokens):
    """Also where there is nothing to show: while the prompt is read, or a stop text may begin."""
    text = Script(prompt(), " great and the plot was good")
    asked = iter([False] * tokens + [True])
    stop = (" great and the plot was good and more",)
    writer = Writer(text, TOKENIZER, [END])
    writing = writer.write(prompt(), Manner(stop=stop), left=lambda: next(asked))
    shown = "".join(writing)
    assert writing.ended == "left" and len(writing.tokens) == tokens
    assert shown == TOKENIZER.decode(writing.tokens) and len(text.reads) == tokens
    again = writer.write(prompt(), Manner())
    assert "".join(again) == " great and the plot was good"
