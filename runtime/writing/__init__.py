"""Writing text with a bundle: which token comes next, what of it is shown, when it ends."""

from .choose import Manner
from .likelihood import TokenLogprob
from .write import Writer, Writing, check_prompt

__all__ = ["Manner", "TokenLogprob", "Writer", "Writing", "check_prompt"]
