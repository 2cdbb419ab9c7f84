"""A bundle whose program is only bytes but whose head for text is real, and an engine over it."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from seedtune.runtime.bundle import Adapter, Bundle, TextFrame, TextHeadInfo, WordsPlace
from seedtune.runtime.engines import Engine, Scores, Terms
from seedtune.runtime.engines.contract import check_request
from seedtune.runtime.scoring.text_head import TextHead
from seedtune.runtime.scoring.word_table import WordTable
from seedtune.runtime.tasks import Batch
from tiny_bundle import bundle_parts, write_tiny_bundle

WIDTH, STATES, WORDS = 32, 64, 384
OUTPUTS, INPUTS = 16, 24
SPEC = {"kind": "completion", "template": "{before}", "completion_field": "reply"}


def packed(words: int = WORDS, width: int = WIDTH, seed: int = 0) -> tuple[Any, Any]:
    """Codes and scales of random words, as a program holds them."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (words, width // 2), np.uint8)
    scales = rng.uniform(0.05, 0.1, (words, width // 32)).astype(np.float32)
    return codes, (scales.view(np.uint32) >> 16).astype(np.uint16)


def token_states() -> NDArray[np.float32]:
    """float32 ``[WORDS, STATES]``, what the engine's states are at each token."""
    drawn = np.random.default_rng(1).standard_normal((WORDS, 2, WIDTH))
    drawn /= np.sqrt(np.square(drawn).mean(axis=2, keepdims=True))
    return drawn.reshape(WORDS, STATES).astype(np.float32)


def frame_of(table: WordTable, **changes: Any) -> TextFrame:
    """With random bases, and generic text of every fourth word."""
    rng = np.random.default_rng(2)
    bases = [np.linalg.qr(rng.standard_normal((n, n)))[0] for n in (STATES, WIDTH)]
    states = token_states()[::4].astype(np.float16)
    blank = np.zeros((len(states), OUTPUTS), np.float16)
    parts: dict[str, Any] = {
        "weight": rng.uniform(0.5, 1.5, WIDTH).astype(np.float32),
        "shift": np.zeros(WIDTH, np.float32),
        "size": np.asarray(1.0, np.float32),
        "inputs": bases[0][:, :INPUTS].astype(np.float16),
        "outputs": bases[1][:, :OUTPUTS].astype(np.float16),
        "states": states,
        "expected": blank,
        **changes,
    }
    frame = TextFrame(**parts)
    read = frame.read(states.astype(np.float32))
    mean = table.expected(read, np.zeros(len(read), np.int64))[0]
    parts["expected"] = (mean @ frame.outputs.astype(np.float32)).astype(np.float16)
    return TextFrame(**parts)


def text_parts(**changes: Any) -> dict[str, Any]:
    """Arguments of ``Contents``."""
    codes, scales = packed()
    program = b"odd" + codes.tobytes() + b"and even" + scales.tobytes() + b"end"
    place = WordsPlace("program.pte", 3, 3 + codes.nbytes + 8)
    parts = bundle_parts(
        program,
        model={**bundle_parts()["model"], "hidden_size": WIDTH},
        hidden_blocks=[1, 2],
        mean_blocks=[1],
        adapter=Adapter(WIDTH, (1, 2)),
        text_head=TextHeadInfo(OUTPUTS, INPUTS, place, None),
        text_frame=frame_of(WordTable(codes, scales)).to_bytes(),
        task=SPEC,
    )
    return parts | changes


def write_text_bundle(folder: Path, **changes: Any) -> Bundle:
    """A bundle on disk."""
    return write_tiny_bundle(folder, **text_parts(**changes))


class TextEngine(Engine):
    """Its states are the token's, whatever the values; its head is the bundle's words."""

    def __init__(self, bundle: Bundle) -> None:
        self.entries, self.hidden_width = bundle.K, bundle.hidden_width
        self.adapter_shape = bundle.adapter_shape
        self._bounds = bundle.bounds
        text = TextHead.of(bundle)
        assert text is not None
        self._frame, self._words = text.frame, text.words.vectors(slice(None))
        self._states = token_states()

    def score(
        self,
        batch: Batch,
        values: NDArray[np.float32],
        adapter: NDArray[np.float32] | None = None,
        terms: Terms = (),
        *,
        inside: bool = False,
    ) -> Scores:
        assert not terms and not inside
        check_request(self._bounds, batch, values, self.entries, adapter, self.adapter_shape)
        states = self._states[batch.tokens.reshape(-1)[batch.positions]]
        read = self._frame.read(states)
        if adapter is not None:
            read = read + states @ adapter.T
        logits = read @ self._words.T
        logits -= logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        logp = np.take_along_axis(logits, batch.candidates, axis=1)
        hidden = np.concatenate([states, states[:, :WIDTH]], axis=1)
        return Scores(*(np.stack([each] * len(values)) for each in (logp, hidden)))
