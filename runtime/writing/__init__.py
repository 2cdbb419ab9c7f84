"""Writing text with a bundle: which token comes next, what of it is shown, when it ends."""

from .manner import Manner
from .write import Writer, Writing, check_prompt

__all__ = ["Manner", "Writer", "Writing", "check_prompt"]
