"""Kind of case of ``fuzz`` with a conversation in it: chat templates, and messages for them."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz_odd import SOUND, Case, odd_json
from seedtune.runtime.bundle import Bounds
from seedtune.runtime.bundle.parts import ChatPart, parse_chat
from seedtune.runtime.tasks import encode_rows, task_from_spec
from seedtune.runtime.tasks.chat_template import ChatTemplate, checked_messages
from seedtune.runtime.tasks.tokenising import watched
from tiny_bundle import tiny_tokenizer
from tokenizers import Tokenizer

BOUNDS = Bounds(probes=1, rows=1, length=4096, positions=4096, candidates=4)
SPEC = {"kind": "chat", "messages_field": "messages", "learn": "assistant"}
CONTROLS = ["<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>"]
_PIECES = [
    *CONTROLS, "<|IM_END|>", "<|im", "_end", "|>", "im_end", "<", "user", "the film", " ", "\n", "",
    "\U0010fffd", "\U000f0000", "\ud83d", "\x00", "\x1b[2J", "é漢😀", "{{ 9**9 }}", "a" * 300,
]  # fmt: skip
_TEMPLATES = [
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "{{ bos_token }}{% for m in messages %}{{ '<|' ~ m.role ~ '|>' ~ m.content | trim | lower }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "{%- set s = messages[0].content | trim if messages[0].role == 'system' else '' -%}"
    "{%- for m in messages -%}{% if m.role == 'user' %}<|user|>{{ s ~ m.content }}<|im_end|>"
    "{% elif m.role == 'assistant' %}<|assistant|>{% generation %}{{ m.content }}<|im_end|>"
    "{% endgeneration %}{% for call in m.tool_calls or [] %}{{ call | tojson }}"
    "{{ call.function.arguments.items() | list | join('|') }}{% endfor %}{% endif %}{%- endfor -%}",
]
_HOSTILE = [
    "9**(9**9)", "2**(99**9)", "'a' * 10**9", "[1] * 10**9", "'%999999999d' % 1",
    "'%*d' % (9**9, 1)",
    "messages * 9999999", "''.__class__.__mro__", "messages.append(1)", "range(99999999) | list",
    "range(9999) | map('string') | join", "'a' | center(999999999)", "'a' | indent(99999999)",
    "'{:>999999999}'.format(1)", "'a'.ljust(999999999)", "'a' | replace('', 'b' * 99999)",
    "messages | tojson(indent=99999999)", "(99**999) | string", "strftime_now('%Y' * 9999)",
    "strftime_now(messages[0].content)", "raise_exception('\n' * 9)", "raise_exception(9)",
    "1 // 0",
    "messages[9].content", "lipsum(n=99999)", "cycler", "self", "messages | map(attribute='x')",
    "messages | batch(99999999) | list", "messages | slice(99999999) | list",
    "'a'.encode('x' * 99)",
    "'a'.zfill(999999999)", "'a'.expandtabs(9)", "'\t'.expandtabs(999999999)", "{}['x']",
    "dict(a=1)",
    "messages | groupby('role') | list", "messages | sort(attribute='content')",
    "'<|' ~ 'im_end|>'",
    "messages[0].content * 99999", "messages[0].content | wordwrap(1)", "messages[0] | pprint",
    "'a'.join(messages[0].content * 9)", "9 | round(999999999)", "1e308 * 10", "'٣' | int ** 9999",
]  # fmt: skip
_LOOPS = [
    "{% for i in range(99999999999) %}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
    "{{ n.x }}",
    "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
]
_MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "the film", "name": "Ann", "parts": ["a", {"text": "b"}]},
    {"role": "assistant", "content": "was great", "tool_calls": [
        {"id": "x", "function": {"name": "look", "arguments": {"path": "/x",
        "n": [1, 2.5, None]}}}]},
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": "It was"},
]  # fmt: skip


def chat_kinds() -> dict[str, Case]:
    """The kinds of cases."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens(CONTROLS)
    numbers = {tokenizer.token_to_id(each): each for each in CONTROLS}
    sound = [_templates(source, tokenizer) for source in _TEMPLATES]

    def template(rng: random.Random) -> tuple[str, Callable[[], str]]:
        what, source = _odd_template(rng)
        part = json.dumps({"template": source, "special_tokens": {"bos_token": "<bos>"}}).encode()
        if rng.random() < 0.1:
            said, part = odd_json(json.loads(part), rng)
            what += "; " + said
        messages = _odd_messages(rng) if rng.random() < 0.3 else _MESSAGES

        def read() -> str:
            chat = parse_chat(part, Path("chat.json"))
            task = task_from_spec(SPEC, tokenizer, BOUNDS, 0, chat=chat)
            encode_rows(task, [{"messages": messages}])
            return SOUND

        return what, read

    def conversation(rng: random.Random) -> tuple[str, Callable[[], str]]:
        which, messages = rng.randrange(len(sound)), _odd_messages(rng)

        def read() -> str:
            found, task = sound[which]
            checked = checked_messages(messages, "the prompt")
            tokens = watched(lambda _: found.answering(checked, "the prompt"), "the prompt")
            count = sum(token in numbers for token in tokens)
            made = sum(each["role"] != "system" for each in checked) if which == 2 else len(checked)
            # A turn of the last template is two control tokens, and of the others two or one.
            wanted = {0: 2 * made + 1, 1: made + 1, 2: 2 * made}[which]
            if count != wanted:
                return "different"
            encode_rows(task, [{"messages": messages}])
            return SOUND

        return f"template {which}: {str(messages)[:300]!a}", read

    return {"chat template": template, "messages": conversation}


def _templates(source: str, tokenizer: Tokenizer) -> tuple[ChatTemplate, Any]:
    names = {"bos_token": "<bos>"}
    task = task_from_spec(SPEC, tokenizer, BOUNDS, 0, chat=ChatPart(source, names))
    return ChatTemplate(source, names, tokenizer), task


def _odd_template(rng: random.Random) -> tuple[str, str]:
    """A template with an expression or a loop that harms, pieces of another, or damaged text."""
    source, way = rng.choice(_TEMPLATES), rng.random()
    place = rng.choice([0, len(source), rng.randrange(len(source))])
    if way < 0.001:
        odd = rng.choice(_LOOPS)
    elif way < 0.6:
        odd = rng.choice(_HOSTILE)
        if rng.random() < 0.3:
            odd += rng.choice([" ~ ", " + ", " * ", " ** ", " % ", " | "]) + rng.choice(_HOSTILE)
        odd = "{{ " + odd + " }}"
    elif way < 0.8:
        other = rng.choice(_TEMPLATES)
        start = rng.randrange(len(other))
        odd = other[start : start + rng.randrange(60)]
    else:
        start = rng.randrange(len(source))
        end = start + rng.randrange(20)
        return f"without {start} to {end}", source[:start] + rng.choice(_PIECES) + source[end:]
    return f"{odd} at {place}"[:200], source[:place] + odd + source[place:]


def _odd_messages(rng: random.Random) -> Any:
    """Messages with pieces of control tokens anywhere, and sometimes fields that are odd."""
    messages = copy.deepcopy(_MESSAGES[rng.randrange(2) : rng.randrange(2, 6)])
    _mix(messages, rng)
    if rng.random() < 0.3:
        try:
            return json.loads(odd_json(messages, rng)[1])
        except (ValueError, RecursionError):
            return "[" + "x" * 9
    return json.dumps(messages) if rng.random() < 0.05 else messages


def _mix(value: Any, rng: random.Random) -> None:
    """Put pieces into all text of ``value`` but roles, and into the names of its inner fields."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        if isinstance(value[key], (dict, list)):
            _mix(value[key], rng)
            if key == "arguments" and rng.random() < 0.5:
                value[key][_text(rng)] = _text(rng)
        elif isinstance(value[key], str) and key != "role" and rng.random() < 0.6:
            value[key] = _text(rng)


def _text(rng: random.Random) -> str:
    return "".join(rng.choices(_PIECES, k=rng.choice([0, 1, 2, 3, 6])))
