"""What torchao's operators are said to give, and what they give."""

import pytest
import torch
from seedtune.export.lower.known_sizes import known_quantisation
from torch._subclasses import fake_impls
from torch._subclasses.fake_tensor import FakeTensorMode

X = torch.randn(3, 5, 64)
TOKEN = [1, 1, 64]
SCALE, ZERO = torch.ones(3, 5, 1), torch.zeros(3, 5, 1, dtype=torch.int8)
FLOATS = {"scale_dtype": torch.float32, "zero_point_dtype": torch.int8}
ASKED = {
    "of each token": ("choose_qparams_affine", "ASYMMETRIC", TOKEN, torch.int8, {"keepdim": True}),
    "without its axis": ("choose_qparams_affine", "SYMMETRIC", TOKEN, torch.int8, FLOATS),
    "of all": ("choose_qparams_affine", "SYMMETRIC", [3, 5, 64], torch.int8, {"keepdim": True}),
    "of groups": ("choose_qparams_affine", "SYMMETRIC", [1, 1, 32], torch.int8, {"keepdim": True}),
    "of groups, without": ("choose_qparams_affine", "ASYMMETRIC", [1, 5, 16], torch.int8, {}),
    "int8": ("quantize_affine", TOKEN, SCALE, ZERO, torch.int8, -128, 127, {}),
    "float32": ("dequantize_affine", TOKEN, SCALE, ZERO, torch.int8, -128, 127, {}),
    "float16": (
        *("dequantize_affine", TOKEN, SCALE, ZERO, torch.int8),
        {"output_dtype": torch.float16},
    ),
}


@pytest.mark.parametrize("case", ASKED)
def test_they_give_what_is_said(case):
    name, *arguments, named = ASKED[case]
    known = fake_impls.op_implementations_dict
    before = dict(known)
    with known_quantisation():
        operator = getattr(torch.ops.torchao, name).default
        x = X.to(torch.int8) if name == "dequantize_affine" else X
        mode = FakeTensorMode()
        said = known[operator](mode, operator, mode.from_tensor(x), *arguments, **named)
        given = operator(x, *arguments, **named)
    assert [(each.shape, each.dtype) for each in several(said)] == [
        (each.shape, each.dtype) for each in several(given)
    ]
    assert known == before


def several(given):
    return given if isinstance(given, tuple) else (given,)
