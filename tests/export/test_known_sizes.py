"""What torchao's operators are said to give, and what they give."""

import pytest
import torch
from seedtune.export.lower.known_sizes import known_quantisation
from torch._subclasses import fake_impls
from torch._subclasses.fake_tensor import FakeTensorMode

X = torch.randn(3, 5, 64)
TOKEN = [1, 1, 64]
SCALE, ZERO = torch.ones(3, 5), torch.zeros(3, 5, dtype=torch.int8)
EACH = (torch.int8, -128, 127, None, None, torch.int8)
ASKED = {
    "scales": ("choose_qparams_affine", "ASYMMETRIC", TOKEN, *EACH),
    "int8": ("quantize_affine", TOKEN, SCALE, ZERO, torch.int8, -128, 127),
    "float32": ("dequantize_affine", TOKEN, SCALE, ZERO, torch.int8, -128, 127),
}
"""As int8 activations of each token ask them."""


@pytest.mark.parametrize("case", ASKED)
def test_they_give_what_is_said(case):
    name, *arguments = ASKED[case]
    known = fake_impls.op_implementations_dict
    before = dict(known)
    with known_quantisation():
        operator = getattr(torch.ops.torchao, name).default
        x = X.to(torch.int8) if name == "dequantize_affine" else X
        mode = FakeTensorMode()
        said = known[operator](mode, operator, mode.from_tensor(x), *arguments)
        given = operator(x, *arguments)
    assert [(each.shape, each.dtype) for each in several(said)] == [
        (each.shape, each.dtype) for each in several(given)
    ]
    assert known == before


def several(given):
    return given if isinstance(given, tuple) else (given,)
