"""The torch-free engine on a really exported program, held against executorch's own binding."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compiler import needs_compiler
from exported_bundle import BOUNDS, TERMS, arrays, moved, request
from faults import run_and_kill
from seedtune.runtime.bundle import Bounds, open_bundle
from seedtune.runtime.engines import executorch_native as native
from seedtune.runtime.engines import executorch_native_build as native_build
from seedtune.runtime.engines import open_engine
from seedtune.runtime.engines.contract import EngineUnavailable
from seedtune.runtime.engines.executorch_native import NativeEngine, NativeProgram
from seedtune.runtime.errors import BundleError, EngineError, SeedtuneWarning
from seedtune.runtime.files import is_whole

pytestmark = needs_compiler

LEAST = {"rows": 1, "length": 2, "scored": 1, "choices": 1, "probes": 1}
MOST = {"rows": 8, "length": 32, "scored": 48, "choices": 4, "probes": 2}
SIZES = [LEAST, MOST, {"rows": 3, "length": 20, "scored": 5, "choices": 2, "probes": 2}]

# Imports only what a device has, scores what the file named first holds, and writes the results.
SCRIPT = """
import json, sys, time
from pathlib import Path
import numpy as np
from seedtune.runtime.bundle import Bounds
from seedtune.runtime.engines.executorch_native import NativeEngine
from seedtune.runtime.tasks import Batch
program, bounds, arguments, results, threads = sys.argv[1:]
engine = NativeEngine(Path(program), Bounds(**json.loads(bounds)), threads=int(threads))
with np.load(arguments) as file:
    requests = [[file[f"{i}_{j}"] for j in range(8)] for i in range(len(file) // 8)]
found = [
    engine.score(Batch(*request[:3], gold=None), *request[3:5], request[5:], inside=True)
    for request in requests
]
np.savez(results, *[each for s in found for each in (s.logp, s.hidden, *s.inside)])
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "modules": sorted(sys.modules),
    "peak_kb": int(status["VmHWM"].split()[0]),
    "threads": engine.threads,
    "tasks": int(status["Threads"]),
}))
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache for this module, so that the library is really built."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cache, monkeypatch):
    monkeypatch.setenv("SEEDTUNE_CACHE", str(cache))


@pytest.fixture(scope="module")
def binding_results(bundle):
    """What executorch's Python binding gives for ``SIZES``: log-probabilities, hidden states, and
    what terms are learned from."""
    import torch
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(bundle.program_path).load_method("score")
    return [
        [
            result.numpy().copy()
            for result in method.execute(
                [torch.from_numpy(each) for each in arrays(*request(bundle, **size))]
            )
        ]
        for size in SIZES
    ]


def run_alone(bundle, folder, threads):
    """Results for ``SIZES`` from a fresh process, and what that process says of itself."""
    arguments, results = folder / "arguments.npz", folder / "results.npz"
    requests = [arrays(*request(bundle, **size)) for size in SIZES]
    np.savez(arguments, **{f"{i}_{j}": a for i, r in enumerate(requests) for j, a in enumerate(r)})
    bounds = json.dumps(vars(BOUNDS))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT]
        + [str(each) for each in (bundle.program_path, bounds, arguments, results, threads)],
        capture_output=True,
        text=True,
        cwd="/",
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},  # numpy's own
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    with np.load(results) as file:
        found = [[file[f"arr_{4 * i + j}"] for j in range(4)] for i in range(len(SIZES))]
    return found, json.loads(done.stdout)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_process_without_torch_gives_the_bits_of_executorchs_binding(
    bundle, binding_results, tmp_path, threads
):
    results, process = run_alone(bundle, tmp_path, threads)
    for both in zip(results, binding_results, strict=True):
        for ours, theirs in zip(*both, strict=True):  # log-probabilities, hidden states, ...
            assert ours.dtype == np.float32
            assert np.isfinite(ours).all()
            np.testing.assert_array_equal(ours, theirs)
    loaded = {name.partition(".")[0] for name in process["modules"]}
    assert not loaded & {"torch", "executorch", "transformers", "onnxruntime"}
    assert process["threads"] == threads
    # Python's own thread works too, so a pool of n starts n - 1 more.
    assert process["tasks"] == threads
    # About 45 MB: interpreter, numpy, executorch's libraries. Torch alone takes over 200 MB.
    assert process["peak_kb"] < 80_000


def test_beside_the_binding_in_one_process(bundle, binding_results):
    """Both share the libraries; a request leaves nothing behind for the next one."""
    engine = NativeEngine(bundle.program_path, bundle.bounds)
    for _ in range(2):
        for size, (logp, hidden, *inside) in zip(SIZES, binding_results, strict=True):
            batch, values = request(bundle, **size)
            scores = engine.score(batch, values, *moved(batch, values), inside=True)
            np.testing.assert_array_equal(scores.logp, logp)
            np.testing.assert_array_equal(scores.hidden, hidden)
            for ours, theirs in zip(scores.inside, inside, strict=True):
                np.testing.assert_array_equal(ours, theirs)
    used = engine.threads
    engine.close()
    # The binding's method still uses the pool, which must stay as it is.
    with pytest.raises(EngineError, match=f"binding is loaded .* keeps its {used} threads"):
        NativeEngine(bundle.program_path, bundle.bounds, threads=used + 5)


def test_a_program_describes_itself(bundle):
    program = NativeProgram(bundle.program_path)
    assert program.methods() == ["behind", "columns", "generate", "score"]
    method = program.describe("score")
    assert method.inputs == (
        ("int64", (8, 32)),
        ("int64", (48,)),
        ("int64", (48, 4)),
        ("float32", (2, bundle.K)),
        ("float32", (32, 32 * 2)),
        *(("float32", shape) for shape in TERMS),
    )
    sizes = (4, bundle.hidden_width, 2, 32)
    assert method.outputs == tuple(("float32", (2, 48, size)) for size in sizes)
    assert method.planned_bytes > 0
    with pytest.raises(EngineError, match="method forward: "):
        program.describe("forward")
    with pytest.raises(EngineError, match="method forward: "):
        program.load("forward")


def test_a_program_that_returns_something_else_is_refused(bundle):
    described = NativeProgram(bundle.program_path).describe("score")
    for outputs in ((), described.outputs[:2], described.outputs * 2, (("int64", (2, 48, 4)),)):
        odd = replace(described, outputs=outputs)
        with pytest.raises(EngineError, match="returns another type than a bundle's program"):
            native._check_program(bundle.program_path, odd, BOUNDS)


def with_program(script, bundle, *more):
    """Run ``script`` in a process of its own, with the program's path and more of them."""
    command = [sys.executable, "-c", script, str(bundle.program_path), *map(str, more)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=120)


def test_the_thread_count_of_an_open_program_stands(bundle):
    """In a process of its own: executorch's binding, in this one, keeps the pool in use."""
    script = """
import sys
from pathlib import Path
from seedtune.runtime.engines.executorch_native import NativeProgram
from seedtune.runtime.errors import EngineError
path = Path(sys.argv[1])
first = NativeProgram(path, threads=3)
first.load("score")
print(first.threads, NativeProgram(path).threads)
try:
    NativeProgram(path, threads=2)
except EngineError as error:
    print(error)
first.close()
for threads in (1, 2, 4, 1):
    again = NativeProgram(path, threads=threads)
    again.load("score")
    print(again.threads)
    again.close()
from executorch.extension.pybindings import portable_lib
try:
    NativeProgram(path, threads=2)
except EngineError as error:
    print(error)
"""
    done = with_program(script, bundle)
    assert done.returncode == 0, done.stderr
    first, refusal, *rest, bound = done.stdout.splitlines()
    assert first == "3 3"
    assert "Python binding is loaded in this process and keeps its 1 threads; ask for 1" in bound
    assert "another program is open in this process with 3 threads" in refusal
    assert rest == ["1", "2", "4", "1"]


def test_errors_are_told_where_the_binding_is_loaded_later(bundle):
    """It takes the log of the runtime, which the reasons of errors come from."""
    script = """
import sys
from pathlib import Path
import numpy as np
from seedtune.runtime.engines.executorch_native import NativeProgram
from seedtune.runtime.errors import EngineError
program = NativeProgram(Path(sys.argv[1]))
from executorch.extension.pybindings import portable_lib
(_, values), *tuned = program.describe("score").inputs[3:]
given = [np.full((2, 5), 10**6), np.array([4, 9]), np.array([[1, 2]] * 2)]
given += [np.zeros((1, values[1]), np.float32)]
given += [np.zeros(shape, np.float32) for _, shape in tuned]
for _ in range(2):
    print("asked", file=sys.stderr)
    try:
        program.run("score", given, (1, 2, 2))
    except EngineError as error:
        print(error)
"""
    done = with_program(script, bundle)
    assert done.stdout.count("score failed: Check failed") == 2, done.stderr
    assert "index" not in done.stderr and done.stderr.endswith("asked\n")


def test_two_copies_of_the_library_in_one_process(bundle, tmp_path):
    """Each takes the log in turn."""
    (tmp_path / "damaged").write_bytes(bundle.program_path.read_bytes()[:100])
    script = """
import os, sys
from pathlib import Path
from seedtune.runtime.engines.executorch_native import NativeProgram
from seedtune.runtime.errors import EngineError
for cache in ("one", "two", "one", "two", "one"):
    os.environ["SEEDTUNE_CACHE"] = str(Path(sys.argv[2], cache))
    try:
        NativeProgram(Path(sys.argv[2], "damaged"))
    except EngineError as error:
        print(error)
    program = NativeProgram(Path(sys.argv[1]))
    assert program.methods()
    program.close()
"""
    done = with_program(script, bundle, tmp_path)
    told = done.stdout.splitlines()
    assert len(told) == 5 and len(set(told)) == 1 and "cannot be read: " in told[0], done.stderr


def test_wider_bounds_than_the_programs_are_refused(bundle):
    wider = Bounds(**(vars(bundle.bounds) | {"length": 33}))
    with pytest.raises(EngineError, match=r"takes tokens up to \(8, 32\), .* need \(8, 33\)"):
        NativeEngine(bundle.program_path, wider)


@pytest.mark.parametrize("size", [0, 8, 5000])
def test_a_damaged_program_is_refused(bundle, tmp_path, size):
    damaged = tmp_path / "program.pte"
    damaged.write_bytes(bundle.program_path.read_bytes()[:size])
    with pytest.raises(EngineError, match=r"program.pte: "):
        NativeEngine(damaged, bundle.bounds)


def test_missing_file_and_closed(bundle, tmp_path):
    with pytest.raises(EngineError, match="no such file"):
        NativeProgram(tmp_path / "none.pte")
    program = NativeProgram(bundle.program_path)
    program.close()
    program.close()
    with pytest.raises(EngineError, match="the program is closed"):
        program.methods()


class TestBuild:
    MADE = b"what a compiler makes" * 1000

    @pytest.fixture
    def compiler(self, tmp_path, monkeypatch):
        """One that writes ``MADE``."""
        monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path))
        file = tmp_path / "c++"
        script = f"import sys\nopen(sys.argv[-1], 'wb').write({self.MADE})\n"
        file.write_text(f"#!{sys.executable}\n{script}")
        file.chmod(0o755)
        monkeypatch.setenv("CXX", str(file))
        return file

    @pytest.fixture
    def loaded(self, monkeypatch):
        """What is loaded as a library from now on, and from where; none is."""
        found: list[tuple[bytes, Path]] = []

        def load(name):
            found.append((Path(name).read_bytes(), Path(name)))

        monkeypatch.setattr(native_build.ctypes, "CDLL", load)
        return found

    def test_built_once_and_whole(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path / "new"))
        native_build.load_library()
        (built,) = (tmp_path / "new" / "engines").glob("*.so")
        stamp = built.stat().st_mtime_ns
        monkeypatch.setenv("CXX", "false")  # would fail if it were called
        native_build.load_library()
        assert built.stat().st_mtime_ns == stamp

    def test_what_a_killed_build_left_is_gone_after_the_next_start(
        self, tmp_path, compiler, loaded
    ):
        script, engines = compiler.read_text(), tmp_path / "engines"
        compiler.write_text(script + "import os\nos.kill(os.getppid(), 9)\n")
        assert run_and_kill(native_build.load_library, None)
        left = list(engines.iterdir())
        assert len(left) == 1
        compiler.write_text(script)
        native_build.load_library()
        assert sorted(file.suffix for file in engines.iterdir()) == [".sha256", ".so"]
        left[0].mkdir()  # of another process, while the library was there already
        native_build.load_library()
        assert sorted(file.suffix for file in engines.iterdir()) == [".sha256", ".so"]

    @pytest.mark.parametrize("damage", ["zeros", "cut", "no hash", "hash cut"])
    def test_a_damaged_library_is_built_again_and_never_loaded(
        self, tmp_path, monkeypatch, compiler, loaded, damage
    ):
        made = self.MADE
        native_build.load_library()
        (library,) = (tmp_path / "engines").glob("*.so")
        (digest,) = (tmp_path / "engines").glob("*.sha256")
        assert loaded.pop() == (made, library) and is_whole(library)
        if damage == "zeros":
            library.write_bytes(made[:4096] + bytes(len(made) - 4096))
        elif damage == "cut":
            library.write_bytes(made[:4096])
        elif damage == "no hash":
            digest.unlink()
        else:
            digest.write_bytes(digest.read_bytes()[:9])
        assert not is_whole(library)
        native_build.load_library()
        assert loaded.pop() == (made, library) and is_whole(library)
        assert sorted((tmp_path / "engines").iterdir()) == sorted((library, digest))
        # Without a compiler, another engine's turn comes.
        library.write_bytes(made[:4096])
        monkeypatch.setenv("CXX", str(tmp_path / "none"))
        assert "no such compiler" in str(native_build.cannot_load())
        with pytest.raises(EngineUnavailable, match="no such compiler"):
            native_build.load_library()

    def test_a_library_that_others_may_have_written_is_not_loaded(
        self, tmp_path, monkeypatch, compiler, loaded
    ):
        """Its hash stands beside it and proves nothing."""
        own = self.MADE
        monkeypatch.setattr(native_build, "_unkept", {})
        engines = tmp_path / "engines"
        engines.mkdir(mode=0o777)
        engines.chmod(0o777)
        target = native_build.built_path(native_build.find_executorch(), "linux-odd")
        monkeypatch.setattr(native_build.sysconfig, "get_platform", lambda: "linux-odd")

        def plant(mode):
            target.write_bytes(b"planted")
            target.chmod(mode)
            digest = hashlib.sha256(b"planted").hexdigest()
            target.with_suffix(".sha256").write_text(digest)
            assert is_whole(target)

        # In a folder of ours that was open: closed, and what anyone may write is built anew.
        plant(0o666)
        native_build.load_library()
        assert loaded[-1] == (own, target) and engines.stat().st_mode & 0o777 == 0o755
        assert target.stat().st_mode & 0o022 == 0
        # In a closed folder on a disk that is read-only, as a device may have it.
        plant(0o755)

        def chmod(path, mode):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "chmod", chmod)
            native_build.load_library()
        assert loaded[-1] == (b"planted", target)
        # A link to what somebody else has.
        plant(0o755)
        target.rename(tmp_path / "elsewhere.so")
        target.symlink_to(tmp_path / "elsewhere.so")
        assert is_whole(target)
        native_build.load_library()
        assert loaded[-1] == (own, target) and not target.is_symlink()
        # What belongs to another user: the file, then the folder.
        real, others = Path.lstat, {target}

        def lstat(path):
            found = real(path)
            if path not in others:
                return found
            return os.stat_result([found[0], *found[1:4], os.geteuid() + 1, *found[5:10]])

        monkeypatch.setattr(Path, "lstat", lstat)
        plant(0o755)
        others_file = native_build._is_ours_alone(target)
        native_build.load_library()
        assert not others_file and loaded[-1] == (own, target)
        others = {engines}
        plant(0o755)
        with pytest.warns(SeedtuneWarning, match=r"engines belongs to another user, so the engine"):
            native_build.load_library()
        data, place = loaded[-1]
        assert data == own and not place.is_relative_to(tmp_path / "engines")
        assert not place.exists() and target.read_bytes() == b"planted"
        monkeypatch.setenv("CXX", "no-such-compiler")
        assert "no such compiler" in str(native_build.cannot_load())
        count = len(loaded)
        native_build.load_library()
        assert len(loaded) == count  # built once a process

    def test_a_failing_compiler_leaves_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path))
        monkeypatch.setenv("CXX", "false")
        with pytest.raises(EngineUnavailable, match=r"false cannot build executorch_native.cpp"):
            native_build.load_library()
        assert not list((tmp_path / "engines").iterdir())

    def test_no_compiler(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path))
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
        with pytest.raises(EngineUnavailable, match=r"install g\+\+ or clang\+\+"):
            native_build.load_library()
        monkeypatch.setenv("CXX", "no-such-compiler -O1")
        with pytest.raises(EngineUnavailable, match="CXX=no-such-compiler: no such compiler"):
            native_build.load_library()

    def test_no_executorch(self, monkeypatch):
        monkeypatch.setattr(native_build.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(EngineUnavailable, match="executorch is not installed"):
            native_build.find_executorch()

    def test_a_cache_that_cannot_be_written(self, tmp_path, monkeypatch):
        blocked = tmp_path / "file"
        blocked.touch()
        monkeypatch.setenv("SEEDTUNE_CACHE", str(blocked))
        with pytest.raises(EngineUnavailable, match="set SEEDTUNE_CACHE"):
            native_build.load_library()

    def test_source_build_and_platform_make_the_name(self, tmp_path, monkeypatch):
        (tmp_path / "version.py").write_text("1")
        names = {native_build.built_path(tmp_path, each).name for each in ("linux-a", "linux-b")}
        (tmp_path / "version.py").write_text("2")
        names.add(native_build.built_path(tmp_path, "linux-a").name)
        source = tmp_path / "native.cpp"
        source.write_text("int x;")
        monkeypatch.setattr(native_build, "SOURCE", source)
        names.add(native_build.built_path(tmp_path, "linux-a").name)
        assert len(names) == 4


class TestOpening:
    def test_what_is_mapped_is_the_file_that_was_checked(self, bundle, tmp_path, monkeypatch):
        """Swapped between the check and the mapping, and before the check."""
        shutil.copytree(bundle.path, tmp_path / "b")
        copy = open_bundle(tmp_path / "b")
        asked = request(copy, **MOST)
        with open_engine(bundle, name="executorch-native") as engine:
            wanted = engine.score(*asked).logp
        real, data = native.NativeEngine, copy.program_path.read_bytes()

        def swapped(*arguments, **more):
            copy.program_path.rename(tmp_path / "away")
            copy.program_path.write_bytes(data[:-9] + bytes(9))
            return real(*arguments, **more)

        monkeypatch.setattr(native, "NativeEngine", swapped)
        with open_engine(copy, name="executorch-native") as engine:
            np.testing.assert_array_equal(engine.score(*asked).logp, wanted)
        with pytest.raises(BundleError, match=r"b/program.pte: altered"):
            open_engine(copy, name="executorch-native")
