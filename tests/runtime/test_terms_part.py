"""What a bundle says of terms, and the part that they are learned in: whole, or refused by name."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save
from seedtune.runtime.bundle import open_bundle
from seedtune.runtime.bundle.terms import MatrixPlace, TermsInfo, TermsPart
from seedtune.runtime.errors import BundleError
from seedtune.runtime.scoring.text_head import TextHead
from text_bundle import WIDTH, WORDS, packed, text_parts, write_text_bundle
from tiny_bundle import with_task

RANK, INNER = 4, 64
GATE = MatrixPlace(codes=1, scales=3, floats=5, columns=3, layer="")
DOWN = MatrixPlace(codes=7, scales=9, floats=11, columns=1, layer="")
INFO = TermsInfo(1, 1, RANK, INNER, 1e-5, 1, "silu", "program.pte", (GATE, GATE, DOWN))
"""Places like any others, as far as sizes go: the bundle's program is only bytes."""
PROGRAM = len(text_parts()["files"]["program.pte"])


def part(**changes):
    rng = np.random.default_rng(0)
    tensors = {
        "inputs": rng.standard_normal((1, RANK, WIDTH), np.float32),
        "inner": rng.standard_normal((1, RANK, INNER), np.float32),
        "norms": rng.standard_normal((1, 1, WIDTH), np.float32),
        "scales": rng.uniform(1, 2, (1, 3, RANK)).astype(np.float32),
        "columns": np.array([0, 9, WIDTH - 1, 0, 9, WIDTH - 1, INNER - 1], np.int32),
        "tokens": rng.integers(0, WORDS, (5, 6), np.int32),
    }
    return TermsPart(**{**tensors, **changes})


def write(folder, info=INFO, own=None, **changes):
    data = part().to_bytes() if own is None else own
    return write_text_bundle(folder, terms=info, terms_part=data, **changes)


def test_they_come_back_and_go_with_another_task(tmp_path):
    written = write(tmp_path / "b")
    other = with_task(written, tmp_path / "c", written.task | {"template": "{before}:"})
    for bundle in (open_bundle(tmp_path / "b"), other):
        assert bundle.terms == INFO
        assert bundle.terms_shapes == ((INNER, RANK), (INNER, RANK), (WIDTH, RANK))
        for name, wanted in vars(part()).items():
            np.testing.assert_array_equal(getattr(bundle.terms_part(), name), wanted)
        terms = TextHead.of(bundle).terms
        assert terms.entries == sum(out * rank for out, rank in bundle.terms_shapes)
    plain = write_text_bundle(tmp_path / "d")
    assert plain.terms is None and plain.terms_shapes == () and TextHead.of(plain).terms is None


def test_matrices_are_read_where_they_are_said_to_lie(tmp_path):
    """In a file that has them at odd places, and columns of other numbers over the codes' own."""
    rng = np.random.default_rng(3)
    content, places, wanted = b"odd", [], []
    for out, wide, own in ((INNER, WIDTH, [0, 9, 31]), (INNER, WIDTH, []), (WIDTH, INNER, [63])):
        codes, scales = packed(out, wide, seed=len(places))
        floats = rng.standard_normal((len(own), out), np.float32)
        parts = [codes.tobytes(), scales.tobytes(), floats.tobytes()]
        starts = len(content) + np.cumsum([0, *map(len, parts)])[:3]
        places.append(MatrixPlace(*starts.tolist(), len(own), ""))
        content += b"".join(parts) + b"!"
        halves = np.stack([codes & 15, codes >> 4], axis=2).reshape(out, wide).astype(int) - 8
        exact = (scales.astype(np.uint32) << 16).view(np.float32)
        matrix = halves * np.repeat(exact, 32, axis=1)
        matrix[:, own] = floats.T
        wanted.append(matrix)
    info = replace(INFO, matrices=tuple(places), file="weights.safetensors")
    own = part(columns=np.array([0, 9, 31, 63], np.int32)).to_bytes()
    parts = text_parts()
    program = replace(parts["programs"][0], files=("program.pte", info.file))
    files = {**parts["files"], info.file: content}
    bundle = write(tmp_path / "b", info, own, programs=[program], files=files)
    found = TextHead.of(bundle).terms.matrices
    for matrix, exact in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(matrix.whole(), exact)


def test_a_damaged_part_is_refused_when_the_bundle_opens(tmp_path):
    write(tmp_path / "b")
    file = tmp_path / "b" / "terms.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError, match=r"terms.safetensors: altered"):
        open_bundle(tmp_path / "b")
    file.unlink()
    with pytest.raises(BundleError, match=r"terms.safetensors: cannot be read"):
        open_bundle(tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (
            "inputs",
            np.zeros((1, RANK, 33), np.float32),
            r"is float32 \[1, 4, 33\], must be f.*32\]",
        ),
        ("inputs", np.zeros((1, RANK, WIDTH), np.float64), "is float64"),
        ("inner", np.zeros((1, RANK, WIDTH), np.float32), r"is .*\[1, 4, 32\], must be .*, 64\]"),
        (
            "norms",
            np.zeros((1, 2, WIDTH), np.float32),
            r"is .*\[1, 2, 32\], must be .*\[1, 1, 32\]",
        ),
        ("norms", np.full((1, 1, WIDTH), np.inf, np.float32), "holds numbers that are not finite"),
        ("scales", np.full((1, 3, RANK), np.nan, np.float32), "holds numbers that are not finite"),
        ("scales", np.zeros((1, 2, RANK), np.float32), r"is .*, must be float32 \[1, 3, 4\]"),
        ("columns", np.zeros(6, np.int32), r"is int32 \[6\], must be int32 \[7\]"),
        ("columns", np.zeros(7, np.int64), r"is int64 \[7\], must be int32"),
        ("columns", np.array([0, 1, WIDTH, 0, 0, 0, 0], np.int32), r"holds a .* outside 0\.\.31"),
        ("columns", np.array([0, 1, -1, 0, 0, 0, 0], np.int32), r"holds a .* outside 0\.\.31"),
        ("columns", np.array([0, 0, 0, 0, 0, 0, INNER], np.int32), r"holds a .* outside 0\.\.63"),
        ("tokens", np.full((2, 6), WORDS, np.int32), r"holds a number outside 0\.\.383"),
        ("tokens", np.full((2, 6), -1, np.int32), r"holds a number outside 0\.\.383"),
        ("tokens", np.zeros((2, 1), np.int32), r"are \[2, 1\], must be rows of two and more"),
        ("tokens", np.zeros((0, 6), np.int32), r"are \[0, 6\], must be rows of two and more"),
        ("tokens", np.zeros(6, np.int32), r"are \[6\], must be rows of two and more"),
        ("tokens", np.zeros((2, 6), np.float32), "is float32"),
    ],
)
def test_a_part_of_other_tensors_is_refused(tmp_path, name, tensor, message):
    with pytest.raises(BundleError, match=rf"b/terms.safetensors: {name} {message}"):
        write(tmp_path / "b", own=part(**{name: tensor}).to_bytes())
    assert not (tmp_path / "b").exists()


def test_what_is_no_such_part_is_refused(tmp_path):
    tensors = vars(part())
    missing = {name: each for name, each in tensors.items() if name != "norms"}
    for odd in (missing, {**tensors, "more": tensors["norms"]}):
        with pytest.raises(BundleError, match=r"terms.safetensors: must hold .'columns', 'inner',"):
            write(tmp_path / "b", own=save(odd))
    with pytest.raises(BundleError, match=r"terms.safetensors: not a safetensors file"):
        write(tmp_path / "b", own=b"12345678")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": 0}, "terms of 1 blocks above 0 do not end at the model's 2"),
        ({"blocks": 2, "first": 0}, r"terms\.matrices has 3 places for 2 blocks"),
        ({"matrices": (GATE, DOWN)}, r"terms\.matrices has 2 places for 1 blocks"),
        ({"inner": 48}, "terms: 32 or 48 is no multiple of 32"),
        ({"rank": 0}, r"terms\.rank"),
        ({"rank": 2**11}, r"terms\.rank"),
        ({"eps": -1e-6}, r"terms\.eps"),
        ({"norms": 3}, r"terms\.norms"),
        ({"activation": "relu"}, r"terms\.activation"),
        ({"file": "values.safetensors"}, r"terms\.file is 'values.safetensors', not a program's"),
        ({"file": "manifest.json"}, r"terms\.file is 'manifest.json', not a program's"),
    ],
)
def test_what_the_manifest_says_of_them_is_checked(tmp_path, change, message):
    with pytest.raises(BundleError, match=message):
        write(tmp_path / "b", replace(INFO, **change))


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        # Codes of 1 024 bytes, 64 scales of two, and four bytes for each number of a column.
        (0, {"codes": PROGRAM - 1023}, r"terms\.matrices\[0\] lies outside 'program.pte'"),
        (1, {"scales": PROGRAM - 127}, r"terms\.matrices\[1\] lies outside"),
        (2, {"floats": PROGRAM - 127}, r"terms\.matrices\[2\] lies outside"),
        (2, {"columns": INNER + 1}, r"terms\.matrices\[2\] lies outside"),
        (0, {"codes": -1}, r"terms\.matrices"),
        (0, {"columns": 2.0}, r"terms\.matrices"),
        (2, {"layer": "somewhere"}, r"terms\.matrices\[2\]: 'somewhere' is no layer of \[32, 64\]"),
    ],
)
def test_a_matrix_that_is_not_in_the_file_is_refused(tmp_path, place, change, message):
    matrices = [*INFO.matrices]
    matrices[place] = replace(matrices[place], **change)
    with pytest.raises(BundleError, match=message):
        write(tmp_path / "b", replace(INFO, matrices=tuple(matrices)))


def test_the_last_bytes_of_the_file_may_be_a_matrix_s(tmp_path):
    ends = replace(GATE, codes=PROGRAM - 1024, scales=PROGRAM - 128, floats=PROGRAM - 768)
    bundle = write(tmp_path / "b", replace(INFO, matrices=(GATE, ends, DOWN)))
    assert TextHead.of(bundle).terms.matrices[1].floats.shape == (3, INNER)


def test_terms_need_a_text_head(tmp_path):
    with pytest.raises(BundleError, match="terms need a text_head"):
        write(tmp_path / "b", text_head=None)
