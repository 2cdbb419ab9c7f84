import hashlib

import numpy as np
import pytest
from seedtune.host_tools.data.calibration import load_calibration, read_documents
from seedtune.runtime.errors import DataError


class Letters:
    """Tokenizer of single letters."""

    eos_token_id = 0

    def __call__(self, text, **_options):
        return {"input_ids": [ord(character) for character in text]}


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("abcd\n\nefgh\n\nijkl\n\nmnop\n")
    return file


def test_documents_are_joined_by_end_of_text_and_cut_to_length(text):
    found = load_calibration(Letters(), sequences=2, length=4, held_out=1, text=text)
    assert found.profile.dtype == np.int64
    assert found.profile.tolist() == [[*b"abcd"], [0, *b"efg"]]
    # The held-out slice begins with a document of its own.
    assert found.held_out.tolist() == [[*b"ijkl"]]


def test_no_held_out_slice(text):
    found = load_calibration(Letters(), sequences=1, length=4, held_out=0, text=text)
    assert found.held_out.shape == (0, 4)


def test_hash_is_of_the_text_that_was_used(text):
    first = load_calibration(Letters(), sequences=1, length=4, held_out=1, text=text)
    assert first.sha256 == hashlib.sha256(b"abcd\0efgh\0").hexdigest()
    text.write_text("abcd\n\nefgh\n\nother\n")
    again = load_calibration(Letters(), sequences=1, length=4, held_out=1, text=text)
    assert again.sha256 == first.sha256
    text.write_text("abcd\n\nefgX\n\nother\n")
    other = load_calibration(Letters(), sequences=1, length=4, held_out=1, text=text)
    assert other.sha256 != first.sha256


def test_jsonl_documents_without_repeats(tmp_path):
    file = tmp_path / "text.jsonl"
    file.write_text('{"passage": "one"}\n{"text": "two"}\n\n{"passage": " one "}\n{"text": ""}\n')
    assert read_documents(file) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "  \n\n ", "holds no text"),
        ("a.jsonl", '{"text": "one"}\n{"text": 2}\n', r"a\.jsonl:2: needs a text field"),
        ("a.jsonl", '{"text": "one"}\n[]\n', r"a\.jsonl:2: needs a text field"),
        ("a.jsonl", '{"text": "one"\n', r"a\.jsonl:1: not JSON"),
        ("a.csv", "x", r"must be a \.txt or a \.jsonl"),
    ],
)
def test_unusable_text(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_documents(tmp_path / name)


def test_missing_and_binary_files(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_documents(tmp_path / "absent.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        read_documents(tmp_path / "binary.txt")


def test_too_little_text_says_so(text):
    with pytest.raises(DataError, match=r"too little text for 2 \+ 3 sequences of 4 tokens"):
        load_calibration(Letters(), sequences=2, length=4, held_out=3, text=text)


@pytest.mark.parametrize("bad", [{"sequences": 0}, {"length": 1}, {"held_out": -1}])
def test_sizes_out_of_range(text, bad):
    with pytest.raises(DataError, match="calibration needs"):
        load_calibration(Letters(), text=text, **bad)


def test_real_tokenizer(tiny_llama, text):
    found = load_calibration(tiny_llama.tokenizer, sequences=1, length=6, held_out=0, text=text)
    assert tiny_llama.tokenizer.decode(found.profile[0]).startswith("abcd</s>")
