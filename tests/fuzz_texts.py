"""Kinds of cases of ``fuzz`` with text in them: rows, tasks, tokenizers."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from fuzz_odd import EQUAL, SOUND, Case, damage, odd_json, own_file
from seedtune.runtime.bundle.parts import parse_tokenizer, vocabulary_of
from seedtune.runtime.errors import DataError
from seedtune.runtime.tasks import check_spec, encode_rows, read_rows, task_from_spec
from seedtune.runtime.tasks.row_formats import strict_json
from tiny_bundle import BOUNDS, TASK, tiny_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

_ROWS: list[dict[str, Any]] = [
    {"text": 'the film was great, "they" said\nand left', "label": "1", "more": "a\tb"},
    {"text": "naïve — 漢字 😀 é", "label": "0", "more": ""},
    {"text": " ", "label": 1, "more": "x;y"},
]
_SPECS: list[dict[str, Any]] = [
    TASK,
    {"kind": "completion", "template": "{more}", "completion_field": "text"},
    {"kind": "multiple_choice", "template": "{text}", "choice_fields": ["text", "more"],
     "label_field": "label"},
]  # fmt: skip


def text_kinds(folder: Path) -> dict[str, Case]:
    """The kinds of cases; ``folder`` is for their files."""
    own, tokenizer = own_file(folder), tiny_tokenizer()
    tasks = [task_from_spec(spec, tokenizer, BOUNDS, 0, on_long="truncate") for spec in _SPECS]
    files = {ending: _file(folder, ending) for ending in _WRITERS}
    sound = {ending: read_rows(folder / f"rows{ending}") for ending in files}
    tokenizers = [json.loads(each.to_str()) for each in _tokenizers()]

    def damaged_rows(rng: random.Random) -> tuple[str, Callable[[], str]]:
        ending = rng.choice(list(files))
        what, bad = damage(files[ending], rng)
        task = rng.choice(tasks)

        def read() -> str:
            place = own("rows" + ending)
            place.write_bytes(bad)
            rows = read_rows(place)
            encode_rows(task, rows, labelled=rng.random() < 0.5)
            return EQUAL if rows == sound[ending] else SOUND

        return f"{ending}: {what}", read

    def odd_rows(rng: random.Random) -> tuple[str, Callable[[], str]]:
        what, text = odd_json(_ROWS, rng)
        ending = rng.choice([".json", ".jsonl", "given"])
        task = rng.choice(tasks)

        def read() -> str:
            if ending == "given":
                try:
                    rows: Any = json.loads(text)
                except (ValueError, RecursionError):
                    return SOUND
            else:
                rows = own("rows" + ending)
                rows.write_bytes(text if ending == ".json" else _as_lines(text))
            encode_rows(task, rows)
            return SOUND

        return f"{ending}: {what}", read

    def task_file(rng: random.Random) -> tuple[str, Callable[[], str]]:
        what, text = odd_json(rng.choice(_SPECS), rng)

        def read() -> str:
            spec = strict_json(text.decode(errors="replace"), "task.json")
            check_spec(spec)
            task = task_from_spec(spec, tokenizer, BOUNDS, 0)
            encode_rows(task, _ROWS[:2])
            return SOUND

        return what, read

    def tokenizer_file(rng: random.Random) -> tuple[str, Callable[[], str]]:
        content = rng.choice(tokenizers)
        if rng.random() < 0.3:
            what, text = damage(json.dumps(content).encode(), rng)
        else:
            what, text = odd_json(content, rng)

        def read() -> str:
            found = parse_tokenizer(text, Path("tokenizer.json"))
            vocabulary_of(found)
            refused = []
            for spec in _SPECS:
                try:
                    task = task_from_spec(spec, found, BOUNDS, 0, on_long="truncate")
                    encode_rows(task, _ROWS[:2])
                except DataError as error:
                    refused.append(error)
            if len(refused) == len(_SPECS):
                raise refused[0]
            return SOUND

        return what, read

    return {
        "rows": damaged_rows,
        "odd rows": odd_rows,
        "task": task_file,
        "tokenizer": tokenizer_file,
    }


def _as_lines(text: bytes) -> bytes:
    """A JSON list as one object a line, if it is one."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return text
    items = found if isinstance(found, list) else [found]
    return "\n".join(map(json.dumps, items)).encode()


def _write_json(path: Path) -> None:
    path.write_text(json.dumps(_ROWS))


def _write_jsonl(path: Path) -> None:
    path.write_text("\n".join(map(json.dumps, _ROWS)))


def _write_table(path: Path) -> None:
    mark = "\t" if path.suffix == ".tsv" else ","
    lines = [mark.join('"' + str(cell).replace('"', '""') + '"' for cell in cells)
             for cells in [list(_ROWS[0]), *(row.values() for row in _ROWS)]]  # fmt: skip
    path.write_text("\n".join(lines), encoding="utf-8")


def _write_text(path: Path) -> None:
    path.write_text("\n".join(str(row["text"]) for row in _ROWS), encoding="utf-8")


def _write_parquet(path: Path) -> None:
    columns = {name: [str(row[name]) for row in _ROWS] for name in _ROWS[0]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


_WRITERS = {
    ".json": _write_json,
    ".jsonl": _write_jsonl,
    ".csv": _write_table,
    ".tsv": _write_table,
    ".txt": _write_text,
    ".parquet": _write_parquet,
}


def _file(folder: Path, ending: str) -> bytes:
    path = folder / f"rows{ending}"
    _WRITERS[ending](path)
    return path.read_bytes()


def _tokenizers() -> list[Tokenizer]:
    """One of each kind of model, with the parts that files in the wild have."""
    byte_level = tiny_tokenizer()
    byte_level.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    pieces = Tokenizer(
        models.WordPiece({"[UNK]": 0, "the": 1, "film": 2, "##s": 3, "was": 4, "great": 5},
                         unk_token="[UNK]", max_input_chars_per_word=50)
    )  # fmt: skip
    pieces.normalizer = normalizers.BertNormalizer()
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    unigram = Tokenizer(
        models.Unigram([("<unk>", 0.0), ("▁the", -1.0), ("▁film", -2.0), ("s", -3.0)], unk_id=0)
    )
    unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "film": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "isolated"), pre_tokenizers.Digits()]
    )
    words.normalizer = normalizers.Sequence([normalizers.Prepend("_"), normalizers.Lowercase()])
    words.add_special_tokens(["<pad>"])
    return [byte_level, pieces, unigram, words]
