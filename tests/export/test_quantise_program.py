"""Rounding during a pass over calibration text: what each linear sees, and what is stored."""

import numpy as np
import pytest
import torch
from seedtune.export.lower.lower import lower
from seedtune.export.lower.trace import trace
from seedtune.export.program.prepare_program import prepare_program
from seedtune.export.program.sensitive_linear import SensitiveLinear
from seedtune.export.quantise import quantise_program as quantising
from seedtune.export.quantise.quantise_program import quantise_program
from seedtune.export.text.make_frame import make_frame
from seedtune.runtime.bundle import Bounds
from seedtune.runtime.errors import ModelError
from torch import nn
from torchao.quantization.quantize_.workflows.intx import intx_unpacked_to_int8_tensor

int8_activations = intx_unpacked_to_int8_tensor._apply_int8_act_asym_per_token_quant_dequant

BOUNDS = Bounds(probes=2, rows=2, length=16, positions=2, candidates=2)
TOKENS = np.random.default_rng(3).integers(2, 300, (24, 32))


def tiny_program(loaded):
    generator = np.random.default_rng(0)
    mask = {
        name: np.sort(generator.choice(layer.weight.numel(), 12, replace=False))
        for name, layer in loaded.model.named_modules()
        if isinstance(layer, nn.Linear) and name.endswith(("q_proj", "up_proj", "down_proj"))
    }
    return prepare_program(loaded.model, mask, BOUNDS)


def log_probabilities(program, surgery):
    """Of the whole vocabulary after every token of a text that was not calibrated on."""
    tokens = torch.from_numpy(np.random.default_rng(4).integers(2, 300, (8, 32)))
    values = torch.from_numpy(surgery.values.astype(np.float32))[None]
    candidates = torch.arange(300).expand(tokens.numel(), 300)
    with torch.no_grad():
        request = tokens, torch.arange(tokens.numel()), candidates
        return program(*request, values)[0]


def test_less_is_lost_than_by_rounding_to_the_nearest(tiny_llama_folder):
    from seedtune.export.model.load_model import load_causal_lm

    lost = {}
    for rounding in ("nearest", "gptq"):
        program, surgery = tiny_program(load_causal_lm(tiny_llama_folder))
        exact = log_probabilities(program, surgery)
        quantise_program(program, surgery, rounding, TOKENS)
        found = log_probabilities(program, surgery)
        lost[rounding] = float((exact.exp() * (exact - found)).sum(-1).mean())
    assert 0 < lost["gptq"] < 0.75 * lost["nearest"]


def test_each_linear_is_rounded_for_the_inputs_that_the_quantised_program_gives(
    tiny_llama, monkeypatch
):
    seen, real = [], quantising.round_with_compensation

    def watched(weight, second_moment, factor, group_size):
        seen.append(second_moment)
        return real(weight, second_moment, factor, group_size)

    monkeypatch.setattr(quantising, "round_with_compensation", watched)
    program, surgery = tiny_program(tiny_llama)
    quantise_program(program, surgery, "gptq", TOKENS)
    linears = [module for module in program.backbone.modules() if isinstance(module, nn.Linear)]
    order, inputs = [], []

    def note(module, args):
        order.append(module)
        inputs.append(int8_activations(args[0]).reshape(-1, args[0].shape[-1]))

    for linear in linears:
        linear.register_forward_pre_hook(note)
    values = torch.from_numpy(surgery.values.astype(np.float32))[None]
    one = torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        program(torch.from_numpy(TOKENS), one, one[:, None], values)
    assert len(set(order)) == len(order) == len(linears) == 14
    apart = []
    for x, moment in zip(inputs, seen, strict=False):
        # The last bits of a product with int8 may differ, and with them a rounding further on.
        apart.append(float((x.t() @ x / len(x) - moment).norm() / moment.norm()))
    assert max(apart) < 5e-3, apart


def test_the_lowered_program_holds_the_chosen_integers_and_scales(
    tiny_llama, monkeypatch, tmp_path
):
    chosen, real = [], quantising.round_with_compensation

    def watched(*arguments):
        chosen.append(real(*arguments))
        return chosen[-1]

    monkeypatch.setattr(quantising, "round_with_compensation", watched)
    program, surgery = tiny_program(tiny_llama)
    quantise_program(program, surgery, "gptq", TOKENS)
    dense = [module for module in program.modules() if isinstance(module, SensitiveLinear)]
    assert len(dense) == 6
    eager = [module.weight for module in program.modules() if isinstance(module, nn.Linear)]
    for integers, scales in chosen:
        wanted = integers * scales.repeat_interleave(32, dim=1)
        assert any(
            weight.shape == wanted.shape and torch.equal(weight.dequantize(), wanted)
            for weight in eager
        )
    lower(program, {"score": lambda: trace(program)}, tmp_path / "program.pte")
    stored = (tmp_path / "program.pte").read_bytes()
    for integers, scales in chosen:
        nibbles = (integers.to(torch.uint8) + 8).view(-1)
        assert bytes((nibbles[1::2] << 4 | nibbles[::2]).numpy()) in stored
        exact = scales.to(torch.bfloat16)
        assert torch.equal(exact.float(), scales)
        assert bytes(exact.view(torch.int16).numpy()) in stored


def test_bad_calibration_is_refused(tiny_llama, tmp_path):
    program, surgery = tiny_program(tiny_llama)
    with pytest.raises(ModelError, match=r"tokens \[n, length\], not \(0, 8\)"):
        quantise_program(program, surgery, "gptq", np.zeros((0, 8), np.int64))
    with pytest.raises(ModelError, match="vocabulary of 300"):
        quantise_program(program, surgery, "gptq", np.full((1, 8), 300))


def test_a_layer_that_overflows_is_named(tiny_llama):
    program, surgery = tiny_program(tiny_llama)
    program.backbone.layers[1].post_attention_layernorm.weight.data.fill_(torch.inf)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.\w+.*calibration text holds NaN"):
        quantise_program(program, surgery, "gptq", TOKENS)


def test_what_passed_is_what_the_rounded_program_makes_of_the_text(tiny_llama):
    program, surgery = tiny_program(tiny_llama)
    passed = quantise_program(program, surgery, "gptq", TOKENS)
    values = torch.from_numpy(surgery.values.astype(np.float32))[None]
    with torch.no_grad():
        read, states, _ = program.states(
            torch.from_numpy(TOKENS), torch.arange(TOKENS.size), values
        )
    wanted = states[0, :, : program.adapter_shape[1]].numpy(), read[0].numpy()
    for found, whole in zip(passed, wanted, strict=True):
        np.testing.assert_allclose(found, whole, atol=1e-5)


def test_a_frame_of_what_passed_is_that_of_another_pass(tiny_llama, monkeypatch):
    program, surgery = tiny_program(tiny_llama)
    passed = quantise_program(program, surgery, "gptq", TOKENS)
    again = make_frame(program, TOKENS, surgery.values)
    monkeypatch.setattr(program, "own_states", None)  # there is no other pass
    frame = make_frame(program, TOKENS, surgery.values, passed=passed)
    np.testing.assert_allclose(frame.states, again.states, atol=1e-3)
    np.testing.assert_allclose(frame.weight, again.weight, atol=1e-5)
