"""What only runs where the torch-free engine can be built."""

import shutil

import pytest

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))),
    reason="no C++ compiler: the binding that stands in imports torch",
)
