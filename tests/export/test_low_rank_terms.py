"""Terms of the upper blocks: what a program adds, and the gradient that a device works out."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from architectures import BOUNDS, some_mask, tiny
from seedtune.export.model.gated_blocks import suited_blocks
from seedtune.export.program.prepare_program import prepare_program
from seedtune.export.quantise.int4 import quantise_linears_
from seedtune.export.text.make_frame import make_frame, packed_words
from seedtune.export.text.make_terms import make_terms
from seedtune.runtime.bundle.terms import ACTIVATIONS, MatrixPlace
from seedtune.runtime.scoring import text_head
from seedtune.runtime.scoring.block_terms import ACTIVATED, BlockTerms, Inside, Kept, Matrix
from seedtune.runtime.scoring.text_head import Observed, TextHead
from seedtune.runtime.scoring.word_table import WordTable

RANK = 3
ROWS = np.random.default_rng(1).integers(0, 96, (12, 20))
BUILT_SO = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma3")


def held(matrix):
    """As a device maps it."""
    codes, scales = matrix.codes.numpy(), matrix.scales.view(torch.int16).numpy().view(np.uint16)
    if matrix.floats is None:
        return Matrix(codes, scales, np.empty((0, len(codes)), np.float32))
    count = len(matrix.columns) * len(codes)
    own = matrix.floats.numpy().reshape(-1)[matrix.skipped : matrix.skipped + count]
    return Matrix(codes, scales, own.reshape(-1, len(codes)))


class Learner:
    """A rounded program whose float weights are what the codes say, and the device's side of it."""

    def __init__(self, name):
        model = tiny(name, blocks=3)
        self.program, surgery = prepare_program(model, some_mask(model), BOUNDS, RANK)
        self.values = surgery.values
        quantise_linears_(self.program)
        codes, scales = packed_words(self.program.head)
        words = WordTable(codes, scales)
        made = make_terms(self.program, ROWS, self.values)
        self.in_float()
        frame = make_frame(self.program, ROWS, self.values)
        places = [MatrixPlace(0, 0, 0, len(each.columns), each.layer) for each in made.matrices]
        layers = {name: (first, count) for name, _, first, count in surgery.layers}

        def sensitive(name):
            first, count = layers[name]
            return slice(first, first + count), surgery.indices[first : first + count]

        width = self.program.adapter_shape[0]
        self.terms = BlockTerms(
            replace(made.info, matrices=tuple(places)),
            width,
            self.program.tap.blocks,
            lambda: made.part,
            lambda: ([held(matrix) for matrix in made.matrices], lambda: None),
            sensitive,
        )
        shape = frame.outputs.shape[1], frame.inputs.shape[1]
        self.head = TextHead(shape, 96, lambda: frame, lambda: words, self.terms)
        for block in self.program.tap.all_blocks:
            block.self_attn.register_forward_hook(
                lambda module, args, output: (output[0].detach(), *output[1:])
            )

    def in_float(self):
        """Nothing is rounded any more while it runs."""
        for module in self.program.modules():
            if isinstance(module, torch.nn.Linear):
                weight = module.weight.dequantize()
                module.rest.held = torch.nn.Parameter(weight, requires_grad=False)

    def forward(self, tokens, positions, candidates, adapter, terms, values=None):
        given = torch.from_numpy(self.values.astype(np.float32)) if values is None else values
        given = given[None]
        asked = map(torch.from_numpy, (tokens, positions, candidates))
        return self.program(*asked, given, adapter, *terms)

    def terms_of(self, learned):
        """What the program takes, with a graph behind it."""
        scales = torch.from_numpy(self.terms.part.scales).reshape(-1, RANK)
        parts = learned.split([out * RANK for out, _ in self.terms.shapes])
        return [part.view(-1, RANK) * scale for part, scale in zip(parts, scales, strict=True)]

    def adapter_of(self, weights):
        """Likewise."""
        frame = self.head.frame
        inputs = torch.from_numpy(frame.scales[:, None] * frame.inputs.astype(np.float32))
        outputs = torch.from_numpy(frame.outputs.astype(np.float32))
        return outputs @ weights.view(self.head.shape) @ inputs.T * float(frame.size)

    def observed(self, hidden, inside, words):
        """What a device keeps of a forward."""
        seen = Inside.of([[each.detach().numpy() for each in inside]])
        states = hidden[0, :, : self.head.frame.states.shape[1]].detach().numpy()
        return Observed(states, words, seen)


def none_of(observed):
    inside = Inside(
        observed.inside.sizes[:0], [Kept.of(each.whole()[:0]) for each in observed.inside.middles]
    )
    return Observed(observed.states[:0], observed.words[:0], inside)


def apart(found, exact):
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


@pytest.mark.parametrize("name", BUILT_SO)
def test_gradient_is_autograds_with_attention_passed_by(name, monkeypatch):
    monkeypatch.setattr(text_head, "RARE", 0.0)
    learner = Learner(name)
    generator = np.random.default_rng(0)
    tokens, said = generator.integers(0, 96, (2, 15)), generator.integers(0, 96, 9)
    positions = np.sort(generator.choice(30, 9, replace=False))
    head, below = learner.head, learner.terms
    weights = generator.normal(0, 0.1, head.entries).astype(np.float32)
    learned = generator.normal(0, 0.1, below.entries).astype(np.float32)

    free = torch.from_numpy(learned).requires_grad_()
    adapter = torch.from_numpy(head.adapter(weights))
    given = tokens, positions, said[:, None], adapter, learner.terms_of(free)
    logp, hidden, *inside = learner.forward(*given)
    (-logp).mean().backward()

    observed = learner.observed(hidden, inside, said)
    whole = np.concatenate([weights, learned])
    found = head.gradient(whole, observed, none_of(observed), 1.0)
    assert np.allclose(found.logp, logp[0, :, 0].detach().numpy(), atol=1e-2)
    assert apart(found.gradient[head.entries :], free.grad.numpy()) < 0.02


@pytest.mark.parametrize("name", BUILT_SO)
@pytest.mark.parametrize("candidates", [1, 3])
def test_gradient_by_sensitive_values_is_autograds_too(name, candidates, monkeypatch):
    """Of losses of one answer and of several, at values that moved."""
    monkeypatch.setattr(text_head, "RARE", 0.0)
    learner = Learner(name)
    generator = np.random.default_rng(0)
    tokens, words = generator.integers(0, 96, (2, 15)), generator.integers(0, 96, (9, candidates))
    positions = np.sort(generator.choice(30, 9, replace=False))
    head, below = learner.head, learner.terms
    moved = learner.values + 0.2 * generator.normal(size=len(learner.values))
    by_logp = generator.normal(size=words.shape)

    free = torch.from_numpy(moved.astype(np.float32)).requires_grad_()
    zeros = torch.zeros(*learner.program.adapter_shape)
    none = [torch.zeros(shape) for shape in below.shapes]
    logp, hidden, *inside = learner.forward(tokens, positions, words, zeros, none, free)
    (logp[0] * torch.from_numpy(by_logp)).sum().backward()

    observed = learner.observed(hidden, inside, words[:, 0])
    upon = head.by_states(observed.states, words, by_logp)
    values = free.detach().numpy()
    found = below.values_gradient(0, values, observed.inside, observed.states, upon)
    reached = np.zeros(len(values), bool)
    for place in below.values:
        if place is not None:
            reached[place.own] = True
    assert 30 < reached.sum() < len(values) and not found[~reached].any()
    assert apart(found[reached], free.grad.numpy()[reached]) < 0.03
    at_start = learner.values.astype(np.float32)
    upper = below.values_gradient(2, values, observed.inside, observed.states, upon)
    ends = [place.own.stop for place in below.values[: len(below.values) // 2] if place is not None]
    np.testing.assert_array_equal(upper[max(ends) :], found[max(ends) :])
    assert not upper[: max(ends)].any() and upper.any()
    found = below.values_gradient(0, at_start, observed.inside, observed.states, upon)
    assert apart(found[reached], free.grad.numpy()[reached]) > 0.03, "where they are must matter"


def test_the_pull_is_the_gradient_of_divergence_from_the_untouched_model(monkeypatch):
    """By the head's weights and by terms, of the first tokens of two rows of generic text."""
    monkeypatch.setattr(text_head, "RARE", 0.0)
    learner, pull = Learner("Llama"), 6.0
    generator = np.random.default_rng(0)
    tokens, said = generator.integers(0, 96, (2, 15)), generator.integers(0, 96, 9)
    positions = np.sort(generator.choice(30, 9, replace=False))
    head, below = learner.head, learner.terms
    size = head.entries, below.entries
    whole = generator.normal(0, 0.1, sum(size)).astype(np.float32)
    rows = np.array([7, 2])
    numbers = (20 * rows[:, None] + np.arange(6)).reshape(-1)
    every_word = np.tile(np.arange(96), (12, 1))

    def divergence_and_loss(free):
        weights, learned = free.split(size)
        tuned = learner.adapter_of(weights), learner.terms_of(learned)
        spoken = learner.forward(tokens, positions, said[:, None], *tuned)
        generic = learner.forward(ROWS[rows, :6], np.arange(12), every_word, *tuned)
        return spoken, generic

    with torch.no_grad():
        _, (before, *_) = divergence_and_loss(torch.zeros(sum(size)))
    free = torch.from_numpy(whole).requires_grad_()
    (logp, *spoken), (after, *generic) = divergence_and_loss(free)
    diverged = (before.exp() * (before - after)).sum(-1).mean()
    ((-logp).mean() + pull * diverged).backward()
    exact = free.grad.numpy()

    observed = learner.observed(spoken[0], spoken[1:], said)
    held = learner.observed(generic[0], generic[1:], numbers)
    plain = head.gradient(whole, observed, none_of(observed), pull).gradient
    for at_once in (text_head.TOKENS, 4):
        monkeypatch.setattr(text_head, "TOKENS", at_once)
        found = head.gradient(whole, observed, held, pull).gradient
        for part in (slice(0, size[0]), slice(size[0], None)):
            assert apart(found[part], exact[part]) < 0.02
            assert apart(plain[part], exact[part]) > 0.1, "the pull must matter"


def test_a_norm_about_the_mean_does_not_suit():
    """A shape is asked before any text goes through."""
    model = tiny("Llama", blocks=3)
    assert len(suited_blocks(model)) == 2
    model.model.layers[2].post_attention_layernorm = torch.nn.LayerNorm(64)
    assert suited_blocks(model) == []


def test_every_gate_that_a_part_may_name_can_be_learned_through():
    assert tuple(ACTIVATED) == ACTIVATIONS


@pytest.mark.parametrize("name", ["OPT", "Phi3"])
def test_blocks_that_are_built_in_another_way_have_none(name):
    model = tiny(name)
    program, _ = prepare_program(model, some_mask(model), BOUNDS, RANK)
    assert program.terms is None and not program.terms_shapes


def changed(block, how):
    """Let a block compute something else than the rule takes for granted, by about a hundredth."""

    def more(module, args, output):
        return output * 1.01

    if how == "norm":
        block.post_attention_layernorm.register_forward_hook(lambda *given: given[2] + 0.01)
    elif how == "between":
        block.mlp.down_proj.register_forward_pre_hook(lambda module, args: (args[0] * 1.01,))
    elif how == "added":
        block.mlp.register_forward_hook(more)
    elif how == "behind":
        block.register_forward_hook(lambda module, args, output: unwrapped(output, 1.01))
    else:
        block.post_attention_layernorm.register_forward_hook(lambda *given: given[2] * (1 + 1e-6))


def unwrapped(output, times):
    return (output[0] * times, *output[1:]) if isinstance(output, tuple) else output * times


@pytest.mark.parametrize("how", ["norm", "between", "added", "behind", "by a rounding error"])
def test_a_block_that_computes_something_else_has_none(how):
    """It looks like any other, and is noticed when generic text goes through."""
    model = tiny("Llama", blocks=3)
    changed(model.model.layers[2], how)
    program, surgery = prepare_program(model, some_mask(model), BOUNDS, RANK)
    quantise_linears_(program)
    assert len(program.terms_shapes) == 6
    made = make_terms(program, ROWS, surgery.values)
    if how == "by a rounding error":
        assert made is not None and len(program.terms_shapes) == 6
    else:
        assert made is None and program.terms is None and not program.terms_shapes


def test_directions_are_what_the_matrices_read_most_of():
    """Orthonormal, with as much of the text's energy as the best have; and a learned 1 adds as much
    as the matrix itself gives."""
    model = tiny("Llama", blocks=3)
    program, surgery = prepare_program(model, some_mask(model), BOUNDS, RANK)
    quantise_linears_(program)
    mlp, seen = model.model.layers[1].mlp, {}
    for name in ("gate_proj", "up_proj", "down_proj"):

        def note(module, args, output, name=name):
            seen[name] = args[0].flatten(0, -2).numpy(), output.flatten(0, -2).numpy()

        getattr(mlp, name).register_forward_hook(note)
    part = make_terms(program, ROWS, surgery.values).part
    for slot, (x, y) in enumerate(seen.values()):
        assert len(x) == ROWS.size
        directions = (part.inner if slot == 2 else part.inputs)[0]
        np.testing.assert_allclose(directions @ directions.T, np.eye(RANK), atol=1e-5)
        best = np.linalg.svd(x, full_matrices=False)[2][:RANK]
        ours, most = (np.square(x @ each.T).sum() for each in (directions, best))
        assert ours > 0.98 * most
        along = np.sqrt(np.square(x @ directions.T).mean(axis=0))
        size = np.sqrt(np.square(y).mean())
        np.testing.assert_allclose(part.scales[0, slot] * along, size, rtol=1e-3)
