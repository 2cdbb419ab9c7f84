"""A memory of words: what it adds, to which text, what it keeps, and how it is wiped."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from seedtune.runtime.errors import TuningError
from seedtune.runtime.scoring.text_part import said_in
from seedtune.runtime.scoring.word_memory import (
    A_STEP,
    WORDS,
    Said,
    WordMemory,
    added,
    left_of,
    of_step,
    texts_in,
    to_bytes,
)
from seedtune.runtime.tasks import Batch
from seedtune.runtime.writing import Manner, Writer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

VOCABULARY = 12


def said(words, before=None):
    return Said(np.array(before or [], np.int64), np.array(words, np.int64))


def kept(*steps, size=WORDS):
    words = np.zeros(size, np.float32)
    for step in steps:
        words = added(words, of_step(to_bytes(step)))
    return words


def memory(*steps):
    return WordMemory(kept(*steps, size=A_STEP), VOCABULARY)


def uniform(count=1):
    return np.full((count, VOCABULARY), -np.log(VOCABULARY), np.float32)


def probabilities(found, tokens, logp=None):
    """Of all words behind ``tokens``."""
    row, last = np.array([tokens]), np.array([len(tokens) - 1])
    words = np.arange(VOCABULARY)[None]
    return np.exp(found.mixed(uniform() if logp is None else logp, row, last, words)[0], dtype="f8")


words_said = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=30)
TEXTS = st.lists(st.tuples(words_said, st.lists(st.integers(0, VOCABULARY - 1), max_size=3)))


class TestWhatItAdds:
    def test_the_rule_written_out(self):
        """Behind 2 came 3 twice and 4 once; behind 1 2 came 3 alone. The text is the user's."""
        found = memory([said([3, 5], [1, 2]), said([4], [2]), said([3], [9, 2])])
        tokens = [9, 2, 4, 1, 2, 3, 5, 1, 2]  # pairs known: 9 2, 2 4, 1 2, 2 3, 3 5, 1 2 of 8
        like = (6 + 0.3) / 9
        f = min(1.0, (like - 0.3) / 0.4)
        p = np.full(VOCABULARY, 1 / VOCABULARY)
        once, twice = f * 3 / (2 * (3 + 10 * 2)), f * 1 / (2 * (1 + 10))
        p = (1 - once) * p + once * np.eye(VOCABULARY)[[3, 3, 4]].sum(axis=0) / 3
        p = (1 - twice) * p + twice * np.eye(VOCABULARY)[3]
        np.testing.assert_allclose(probabilities(found, tokens), p, rtol=1e-5)

    @given(TEXTS, words_said, st.integers(0, 2**32 - 1))
    def test_it_stays_a_distribution_and_writes_what_it_scores(self, texts, tokens, seed):
        found = memory([said(words, before) for words, before in texts])
        logits = np.random.default_rng(seed).standard_normal(VOCABULARY).astype(np.float32)
        logp = logits - np.log(np.exp(logits).sum())
        scored = probabilities(found, tokens, logp[None])
        assert scored.sum() == pytest.approx(1, abs=1e-5)
        written = np.exp(found.mixed_next(logits + np.float32(3), tokens))
        np.testing.assert_allclose(written / written.sum(), scored, rtol=1e-4)

    @given(TEXTS, words_said)
    def test_other_text_is_left_as_it_was(self, texts, tokens):
        """Not one of its pairs of words is known: the log-probabilities are the same bits."""
        step = [said(words, before) for words, before in texts]
        found = WordMemory(kept(step, size=A_STEP), 2 * VOCABULARY)
        other = np.array([tokens]) + VOCABULARY
        last = np.arange(other.size)
        logp = uniform(other.size)
        words = np.tile(np.arange(VOCABULARY), (other.size, 1))
        np.testing.assert_array_equal(found.mixed(logp, other, last, words), logp)

    def test_rows_of_a_batch_and_what_pads_them_do_not_mix(self):
        found = memory([said([1, 2, 3, 4, 5])])
        rows = [[1, 2, 3], [7, 3], [1, 2, 3, 4]]
        tokens = np.array([row + [4] * (5 - len(row)) for row in rows])  # 4 pads
        positions = np.array([5 * number + len(row) - 1 for number, row in enumerate(rows)])
        words = np.tile(np.arange(VOCABULARY), (3, 1))
        together = found.mixed(uniform(3), tokens, positions, words)
        for number, row in enumerate(rows):
            alone = probabilities(found, row)
            np.testing.assert_allclose(np.exp(together[number]), alone, rtol=1e-5)
        assert together[0].argmax() == 4 and together[2].argmax() == 5

    def test_words_in_front_are_looked_back_at_but_were_not_said(self):
        found = memory([said([5], [3, 4])])
        assert probabilities(found, [3, 4, 3, 4]).argmax() == 5
        assert probabilities(found, [4, 5, 3]) == pytest.approx(1 / VOCABULARY)  # 4 was no answer


class TestWhatWasSaid:
    def test_texts_of_a_batch_with_the_words_in_front(self):
        """Of two rows of eight: all but the first word; two turns, words 2 and 3, 7."""
        tokens = np.arange(16).reshape(2, 8) % VOCABULARY
        positions = np.array([*range(7), 9, 10, 14])
        batch = Batch(
            tokens, positions, tokens.reshape(-1)[positions + 1][:, None], np.zeros(2, int)
        )
        found = [(text.before.tolist(), text.words.tolist()) for text in said_in(batch)]
        assert found == [([0], [1, 2, 3, 4, 5, 6, 7]), ([8, 9], [10, 11]), ([0, 1, 2], [3])]


class TestWhatItKeeps:
    @given(TEXTS)
    def test_a_step_s_words_come_back(self, texts):
        step = to_bytes([said(words, before) for words, before in texts])
        assert step.dtype == np.uint8 and len(step) == 3 * A_STEP
        parts = [[0, *(-1 - b for b in before), *(1 + w for w in words)] for words, before in texts]
        whole = [number for part in parts for number in part]
        found = added(np.zeros(4 * A_STEP, np.float32), of_step(step))
        if len(whole) <= A_STEP and all(len(part) <= A_STEP // len(parts) for part in parts):
            np.testing.assert_array_equal(found[len(found) - len(whole) :], whole)

    def test_large_numbers_of_words(self):
        words = [262_143, 0, 70_000]
        np.testing.assert_array_equal(
            kept([said(words, [199_999])], size=5), [0, -200_000, 262_144, 1, 70_001]
        )

    def test_long_texts_lose_their_ends_and_short_ones_nothing(self):
        found = kept([said([1] * 2000), said([2] * 10), said([3] * 2000)])
        counts = {word: int((found == word + 1).sum()) for word in (1, 2, 3)}
        assert counts[2] == 10 and counts[1] == A_STEP // 3 - 1
        assert counts[3] == A_STEP - A_STEP // 3 - 11 - 1

    def test_a_text_goes_with_its_break(self):
        numbers = np.array([5, 6, 0, 7, 8, 0, 9, 9])
        first, middle, last = texts_in(numbers)
        assert left_of(numbers, [middle]).tolist() == [0, 0, 0, 5, 6, 0, 9, 9]
        assert left_of(numbers, [first, last]).tolist() == [0, 0, 0, 0, 0, 0, 7, 8]

    def test_the_oldest_go_first(self):
        found = kept([said([1, 2, 3])], [said([4, 5])], size=5)
        np.testing.assert_array_equal(found, [3, 4, 0, 5, 6])
        again = WordMemory(found, VOCABULARY)  # what is left of a text is one
        assert probabilities(again, [2, 3, 2]).argmax() == 3

    def test_what_was_passed_over_twice_counts_once(self):
        texts = [said([3, 4, 5], [1]), said([3, 4, 6], [1])]
        once, often = memory(texts), memory(texts, texts, texts)
        tokens = [1, 3, 4, 1, 3, 4]
        np.testing.assert_array_equal(probabilities(often, tokens), probabilities(once, tokens))

    def test_what_was_cut_elsewhere_in_another_pass_counts_once(self):
        texts = [said([3, 4, 5, 6], [1]), said([3, 4], [1]), said([3, 4, 7], [1])]
        tokens = [1, 3, 4, 1, 3, 4]
        np.testing.assert_array_equal(
            probabilities(memory(texts), tokens), probabilities(memory(texts[::2]), tokens)
        )

    def test_of_many_texts_the_first_are_kept_with_what_they_say(self):
        found = kept([said([number] * 40, [7]) for number in range(200)])
        counts = [int((found == number + 1).sum()) for number in range(200)]
        assert set(counts) == {14, 0} and counts[: A_STEP // 16] == [14] * (A_STEP // 16)

    def test_nothing_is_no_memory(self):
        np.testing.assert_allclose(probabilities(memory(), [1, 2]), 1 / VOCABULARY, rtol=1e-6)

    @pytest.mark.parametrize("wrong", [0.5, VOCABULARY + 1.0, -VOCABULARY - 1.0, np.nan, np.inf])
    def test_what_are_no_words_is_refused(self, wrong):
        words = kept([said([1, 2])])
        words[-1] = wrong
        place = WORDS - 1
        with pytest.raises(TuningError, match=f"entry {place} is {wrong:g}, no word of 12"):
            WordMemory(words, VOCABULARY)


class _Undecided:
    """A model to which every word is as likely. Duck-typed ``Text``."""

    bound = 64

    def rewind(self, tokens):
        pass

    def read(self, tokens):
        return np.zeros(VOCABULARY, np.float32)


def part_of(found):
    """Of the values, as a writer asks it; penalties are not of these tests."""
    return found and SimpleNamespace(writes=False, mixed_next=found.mixed_next)


def test_a_writer_says_what_the_user_said(tmp_path):
    vocabulary = {f"w{number}": number for number in range(VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
    found = memory([said([5, 6, 7, 8, 9], [3, 4])])
    for own, wanted in ((found, [5, 6, 7, 8, 9]), (None, [0] * 5)):
        writer = Writer(_Undecided(), tokenizer, [11], part=part_of(own))
        writing = writer.write([3, 4, 5, 6, 3, 4], Manner(max_tokens=5))
        assert list(writing) and writing.tokens == wanted


def test_a_writer_ends_where_the_user_did():
    tokenizer = Tokenizer(WordLevel({f"w{n}": n for n in range(VOCABULARY)}, unk_token="w0"))
    for end, tokens in ((11, [5, 6]), (10, [5, 6, 10, 0])):
        found = memory([said([5, 6, end], [3, 4])])
        writer = Writer(_Undecided(), tokenizer, [11], part=part_of(found))
        writing = writer.write([3, 4, 5, 6, 3, 4], Manner(max_tokens=4))
        assert list(writing) and writing.tokens == tokens
        assert writing.ended == ("end" if end == 11 else "max_tokens")
