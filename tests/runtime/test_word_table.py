"""The gradient of what a head reads, against the whole softmax and against differences."""

import numpy as np
import pytest
from seedtune.runtime.scoring import word_table
from seedtune.runtime.scoring.word_table import WordTable
from text_bundle import WIDTH, WORDS, packed, write_text_bundle


def plain(codes, scales):
    """The words' vectors, one by one."""
    rows = []
    for code, scale in zip(codes, scales, strict=True):
        row = [float(half) - 8 for byte in code for half in (byte & 15, byte >> 4)]
        exact = (scale.astype(np.uint32) << 16).view(np.float32)
        rows.append(np.array(row) * np.repeat(exact.astype(np.float64), 32))
    return np.array(rows)


@pytest.fixture(params=[1 << 21, 96 * 7, 1])
def table(request, monkeypatch):
    """All words at once, and in blocks that leave a rest."""
    monkeypatch.setattr(word_table, "_BLOCK", request.param)
    monkeypatch.setattr(word_table, "TOKENS", 512 if request.param > 1000 else 5)
    return WordTable(*packed(50, 96))


def test_vectors_are_the_codes_times_their_scales(table):
    wanted = plain(*packed(50, 96))
    assert table.vectors(slice(None)).dtype == np.float32
    np.testing.assert_allclose(table.vectors(slice(None)), wanted, rtol=1e-6)
    np.testing.assert_array_equal(
        table.vectors(np.array([3, 3, 49])), table.vectors(slice(None))[[3, 3, 49]]
    )


def test_the_mean_word_and_the_log_probability_are_those_of_the_whole_softmax(table):
    rng = np.random.default_rng(0)
    read, said = rng.standard_normal((13, 96), np.float32), rng.integers(0, 50, 13)
    words = plain(*packed(50, 96))
    logits = read.astype(np.float64) @ words.T
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    mean, logp, slope = table.expected(read, said)
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, np.exp(logits) @ words, atol=1e-5)
    np.testing.assert_allclose(logp, logits[np.arange(13), said], atol=1e-4)
    assert (slope == 1).all()
    far, _, _ = table.expected(1000 * read, said)  # one word has it all
    np.testing.assert_allclose(far, words[logits.argmax(axis=1)], atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_it_is_the_gradient(softcap):
    table = WordTable(*packed(50, 96), softcap)
    rng = np.random.default_rng(1)
    read, said = rng.standard_normal((4, 96), np.float32), rng.integers(0, 50, 4)
    mean, _, slope = table.expected(read, said)
    gradient = mean - slope[:, None] * table.vectors(said)
    along = rng.standard_normal((4, 96), np.float32)
    above, below = (-table.expected(read + step * along, said)[1] for step in (1e-2, -1e-2))
    np.testing.assert_allclose((above - below) / 2e-2, (gradient * along).sum(axis=1), rtol=2e-2)


def test_words_are_read_where_the_program_has_them(tmp_path):
    bundle = write_text_bundle(tmp_path / "b")
    found = WordTable.of(bundle).vectors(slice(None))
    assert found.shape == (WORDS, WIDTH)
    np.testing.assert_array_equal(found, WordTable(*packed()).vectors(slice(None)))


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_rare_words_are_drawn_so_that_the_mean_is_right_on_average(softcap):
    """Most words of the table lie under the bound; many draws, one of them far from the mean."""
    table = WordTable(*packed(50, 96), softcap)
    rng = np.random.default_rng(2)
    found, wanted, apart = [], [], []
    for _ in range(400):
        read, said = rng.standard_normal((3, 96), np.float32), rng.integers(0, 50, 3)
        exact, logp, slope = table.expected(read, said)
        mean, *rest = table.expected(read, said, 0.03)
        np.testing.assert_array_equal(rest[0], logp)
        np.testing.assert_array_equal(rest[1], slope)
        found.append(mean)
        wanted.append(exact)
        apart.append(np.linalg.norm(mean - exact) / np.linalg.norm(exact))
    assert np.mean(apart) > 0.1  # something was left out
    gap = np.array(found) - np.array(wanted)
    error = gap.std(axis=0).max() / len(found) ** 0.5
    np.testing.assert_allclose(gap.mean(axis=0), 0, atol=5 * error)


def test_words_drawn_are_few_and_always_the_same(monkeypatch):
    table = WordTable(*packed(50, 96))
    rng = np.random.default_rng(3)
    read, said = 0.01 * rng.standard_normal((8, 96), np.float32), rng.integers(0, 50, 8)
    drawn: list[int] = []
    plainly = word_table._draw

    def draw(odds):
        found = plainly(odds)
        drawn.append(len(found[0]))
        return found

    monkeypatch.setattr(word_table, "_draw", draw)
    once = table.expected(read, said, 0.1)[0]  # each word has a fiftieth, of a bound of a tenth
    np.testing.assert_array_equal(table.expected(read, said, 0.1)[0], once)
    assert drawn == [10, 10]
    np.testing.assert_array_equal(
        table.expected(read, said, 1e-9)[0], table.expected(read, said)[0]
    )
    assert drawn[2:] == [50]


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("cancels", [True, False])
def test_gradient_of_a_loss_of_several_words(softcap, cancels):
    """Against differences of the whole softmax; where its shares cancel and where they do not."""
    table, rng = WordTable(*packed(50, 96), softcap), np.random.default_rng(2)
    read, words = rng.standard_normal((4, 96), np.float32), rng.integers(0, 50, (4, 3))
    by_logp = rng.standard_normal((4, 3))
    if cancels:
        by_logp -= by_logp.mean(axis=1, keepdims=True)
    vectors = plain(*packed(50, 96))

    def loss(at):
        logits = at.astype(np.float64) @ vectors.T
        if softcap:
            logits = softcap * np.tanh(logits / softcap)
        logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return (by_logp * np.take_along_axis(logp, words, axis=1)).sum()

    along = rng.standard_normal((4, 96))
    slope = (loss(read + 1e-4 * along) - loss(read - 1e-4 * along)) / 2e-4
    found = table.gradient(read, words, by_logp, 0.0)
    assert found.dtype == np.float32
    assert (found * along).sum() == pytest.approx(slope, rel=1e-3)
