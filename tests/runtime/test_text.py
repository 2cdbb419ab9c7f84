"""Writing: the method ``generate`` against ``score`` of the same program, and what it refuses."""

import numpy as np
import pytest
from exported_bundle import VOCABULARY, moved, request
from seedtune.runtime.engines import open_engine
from seedtune.runtime.engines.text import SLOTS
from seedtune.runtime.errors import EngineError
from seedtune.runtime.tasks import Batch
from toy_engine import ToyEngine

ENGINES = ("executorch-native", "executorch-binding")


@pytest.fixture(scope="module")
def engine(bundle):
    with open_engine(bundle, name=ENGINES[0]) as opened:
        yield opened


def values_of(bundle, *, seed=None):
    values = bundle.values.astype(np.float32)
    if seed is not None:
        values += 0.3 * np.random.default_rng(seed).standard_normal(len(values), np.float32)
    return values


def tokens_of(count, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).tolist()


def scored(engine, tokens, values, *tuned):
    """Log-probabilities of some tokens behind ``tokens``, by ``score``."""
    batch = Batch(
        tokens=np.array([tokens]),
        positions=np.array([len(tokens) - 1]),
        candidates=np.arange(4)[None],
        gold=np.zeros(1, np.int64),
    )
    return engine.score(batch, values[None], *tuned).logp[0, 0]


def first_four(logits):
    return (logits - np.logaddexp.reduce(logits.astype(np.float64)))[:4].astype(np.float32)


@pytest.mark.parametrize("seed", [None, 1])
def test_a_text_has_the_probabilities_that_score_gives(engine, bundle, seed):
    values, tokens = values_of(bundle, seed=seed), tokens_of(30)
    text = engine.text(values)
    for first, last in ((0, 12), (12, 13), (13, 14), (14, 29), (29, 30)):
        logits = text.read(tokens[first:last])
        assert logits.shape == (VOCABULARY,) and text.length == last
        wanted = scored(engine, tokens[:last], values)
        # 8-bit activations round a little differently where sums are ordered differently
        assert np.abs(first_four(logits) - wanted).max() < 0.05


def test_a_text_under_terms_has_the_probabilities_that_score_gives(engine, bundle):
    values, tokens = values_of(bundle), tokens_of(30)
    tuned = moved(*request(bundle, rows=1, length=30, scored=1, choices=1, probes=1))
    zeros = [np.zeros_like(each) for each in tuned[1]]
    text, unmoved = engine.text(values, *tuned), engine.text(values, tuned[0])
    same = engine.text(values, tuned[0], zeros)
    for first, last in ((0, 12), (12, 13), (13, 29), (29, 30)):
        logits, plain = text.read(tokens[first:last]), unmoved.read(tokens[first:last])
        np.testing.assert_array_equal(same.read(tokens[first:last]), plain)
        wanted = scored(engine, tokens[:last], values, *tuned)
        assert np.abs(first_four(logits) - wanted).max() < 0.1
        assert np.abs(logits - plain).mean() > 0.1
    for odd in (tuned[1][:2], [each.T for each in tuned[1]]):
        with pytest.raises(EngineError, match="the program takes"):
            engine.text(values, None, odd)


def test_values_matter_and_texts_do_not_disturb_each_other(engine, bundle):
    tokens = tokens_of(20)
    alone = engine.text(values_of(bundle)).read(tokens)
    one, other = engine.text(values_of(bundle)), engine.text(values_of(bundle, seed=1))
    one.read(tokens[:19]), other.read(tokens[:19])
    found, moved = one.read(tokens[19:]), other.read(tokens[19:])
    assert np.abs(found - alone).max() < 0.1
    assert np.abs(found - moved).max() > 0.2
    again = engine.text(values_of(bundle))
    again.read(tokens[:19])
    assert np.array_equal(again.read(tokens[19:]), found), "the same calls must give the same bits"


def test_a_text_goes_back_as_if_it_had_not_gone_on(engine, bundle):
    tokens = tokens_of(90)
    text = engine.text(values_of(bundle))
    text.read(tokens[:10])
    wanted = text.read([7])
    text.rewind(10)
    text.read(tokens[10:])
    text.rewind(10)
    assert text.length == 10
    # The cache is longer now, and more of its places are hidden.
    assert np.abs(text.read([7]) - wanted).max() < 0.05
    with pytest.raises(EngineError, match="cannot go back to 12 of 11 tokens"):
        text.rewind(12)


def test_a_long_prompt_is_read_in_chunks_and_fills_the_bound(engine, bundle):
    generation = bundle.programs[0].generation
    assert generation is not None and generation.context == 128 > generation.chunk == SLOTS
    tokens = tokens_of(128)
    text = engine.text(values_of(bundle))
    logits = text.read(tokens)
    slowly = engine.text(values_of(bundle))
    for first in range(0, 128, 16):
        found = slowly.read(tokens[first : first + 16])
    assert np.abs(found - logits).max() < 0.2
    with pytest.raises(EngineError, match=r"129 tokens exceed the 128 of a text.*--context"):
        text.read([1])


def test_both_engines_give_the_same_bits(engine, bundle):
    tokens, values = tokens_of(70), values_of(bundle, seed=1)
    with open_engine(bundle, name=ENGINES[1]) as binding:
        tuned = moved(*request(bundle, rows=1, length=30, scored=1, choices=1, probes=1))
        one, other = engine.text(values, *tuned), binding.text(values, *tuned)
        for part in (tokens[:66], tokens[66:67], tokens[67:]):
            assert np.array_equal(one.read(part), other.read(part))


def test_what_a_text_refuses(engine, bundle):
    text = engine.text(values_of(bundle))
    for tokens in ([300], [-1]):
        with pytest.raises(EngineError, match=r"tokens must lie in 0..299"):
            text.read(tokens)
    with pytest.raises(EngineError, match="no token is given"):
        text.read([])
    with pytest.raises(EngineError, match="values has 3 entries, the program takes"):
        engine.text(np.zeros(3, np.float32))
    with pytest.raises(EngineError, match="values is float16, must be float32"):
        engine.text(bundle.values)
    with pytest.raises(EngineError, match="behind token 2 hold NaN or infinity"):
        engine.text(np.full(bundle.K, np.nan, np.float32)).read([5, 6])


def test_an_engine_that_only_scores_says_so():
    with pytest.raises(EngineError, match="only scores and cannot write text"):
        ToyEngine.text(ToyEngine.__new__(ToyEngine), np.zeros(2, np.float32))


def test_a_closed_engine_writes_nothing(bundle, tmp_path):
    for name in ENGINES:
        with open_engine(bundle, name=name) as opened:
            text = opened.text(values_of(bundle))
        with pytest.raises(EngineError, match="the program is closed"):
            text.read([1])
