"""Fixtures that several packages share; also lets test modules of every folder import the
helpers beside this file by name."""

import gc
import os
import sys
from pathlib import Path

# Each core has a worker: threads that wait for each other between two of them would wait longer
# than they work.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import seedtune.runtime  # noqa: F401  before onnxruntime: see its ``telemetry``

sys.path.insert(0, str(Path(__file__).parent))

_FIRST = (
    "test_real_kills", "test_stored_weight", "test_architectures", "test_load_model",
    "test_java_engine", "test_emulated_machine", "test_fleet", "test_docs", "test_estimate",
    "test_device_install", "test_merged_model", "test_prefix_program", "test_fuzz",
)  # fmt: skip
"""Files that take a minute and more. The first exports SmolLM2 and what most tests read; the next
three do not wait for it, and all of them are over when the short ones fill what is left of the
cores' time."""


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(autouse=True, scope="module")
def one_thread_after_the_binding():
    """executorch's Python binding, once loaded, keeps its process's number of threads; a later
    module may ask for another, which is one wherever a test names it."""
    yield
    binding = sys.modules.get("executorch.extension.pybindings.portable_lib")
    native = sys.modules.get("seedtune.runtime.engines.executorch_native")
    if binding is None or native is None or native.unavailable():
        return
    gc.collect()  # methods that stood in a circle
    if not native._interface().seedtune_programs():
        binding._unsafe_reset_threadpool(1)


@pytest.fixture(scope="session")
def tiny_llama_folder(tmp_path_factory):
    """Hugging Face folder of a tiny random Llama. Do not write to it; copy it."""
    from tiny_model import write_tiny_llama

    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def tiny_llama(tiny_llama_folder):
    """A fresh ``LoadedModel`` of the tiny Llama, free to be changed."""
    from seedtune.export.model.load_model import load_causal_lm

    return load_causal_lm(tiny_llama_folder)


@pytest.fixture(scope="session")
def exports(tmp_path_factory):
    """A folder that all workers of a session share, since an export takes long."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if own.name.startswith("popen-") else own


@pytest.fixture(scope="session")
def exported_folder(exports):
    """Where ``bundle`` is exported: the bundle, and its model in ``hf``."""
    return exports / "exported"


@pytest.fixture(scope="session")
def bundle(exported_folder):
    """The tiny Llama, really exported. Modules that need another bundle define their own."""
    from exported_bundle import export_tiny_bundle

    return export_tiny_bundle(exported_folder)


@pytest.fixture(scope="session")
def reach(exports):
    """``bundle``'s model, exported for every engine; its model in ``hf`` beside it."""
    from exported_bundle import export_tiny_bundle
    from seedtune.export.lower.programs import FORMATS

    return export_tiny_bundle(exports / "reach", FORMATS)


@pytest.fixture(scope="session")
def smollm2():
    """``LoadedModel`` of SmolLM2-135M, for slow tests. Shared: leave its weights alone."""
    from seedtune.export.model.load_model import load_causal_lm
    from seedtune.host_tools.data.fetch import fetch

    return load_causal_lm(fetch("smollm2-135m"))
