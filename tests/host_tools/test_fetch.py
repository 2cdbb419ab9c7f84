import hashlib
import subprocess
import zipfile

import pytest
from command_line import call
from seedtune.host_tools.data import fetch as module
from seedtune.host_tools.data.fetch import RESOURCES, Resource, Wheel, fetch
from seedtune.runtime.errors import DownloadError

CONTENT = {"one": b"first file\n" * 1000, "two": b"second file\n"}


def resource(name, package="seedtune-test-data", sha256=None):
    return Resource(
        name,
        Wheel(package, "1.0", 2000),
        f"seedtune_test_data/{name}.txt",
        sha256 or hashlib.sha256(CONTENT[name]).hexdigest(),
        len(CONTENT[name]),
        "MIT",
        "test data",
    )


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for its only index, with one real wheel in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "seedtune_test_data-1.0-py3-none-any.whl", "w") as wheel:
        for name, content in CONTENT.items():
            wheel.writestr(f"seedtune_test_data/{name}.txt", content)
        info = "seedtune_test_data-1.0.dist-info"
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: seedtune-test-data\nVersion: 1.0\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(module, "RESOURCES", {name: resource(name) for name in CONTENT})
    return folder


@pytest.fixture
def no_pip(monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("pip was started")

    return lambda: monkeypatch.setattr(subprocess, "Popen", refuse)


def test_downloads_once_then_works_offline(index, tmp_path, no_pip):
    seen = []
    file = fetch("one", lambda *step: seen.append(step), tmp_path / "cache")
    assert file.read_bytes() == CONTENT["one"]
    assert seen[-1] == (2000, 2000)
    assert seen == sorted(seen)
    no_pip()
    assert fetch("one", None, tmp_path / "cache") == file
    # The other file of the same wheel came along.
    assert fetch("two", None, tmp_path / "cache").read_bytes() == CONTENT["two"]
    assert sorted(path.name for path in file.parent.iterdir()) == ["one.txt", "two.txt"]


def test_a_file_in_parts_is_put_together_and_its_licence_named(index, tmp_path, monkeypatch):
    """As ``seedtune fetch`` brings a model that one wheel cannot hold."""
    package = "seedtune-test-more"
    with zipfile.ZipFile(index / "seedtune_test_more-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("more/big.txt.part01", CONTENT["two"])
        info = "seedtune_test_more-1.0.dist-info"
        about = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
        for name, text in {
            "METADATA": about,
            "WHEEL": "Wheel-Version: 1.0\n",
            "RECORD": "",
        }.items():
            wheel.writestr(f"{info}/{name}", text)
    whole = CONTENT["one"] + CONTENT["two"]
    big = Resource(
        "big", resource("one").wheel, resource("one").member, hashlib.sha256(whole).hexdigest(),
        len(whole), "Terms of Test", "in two parts",
        ((Wheel(package, "1.0", 500), "more/big.txt.part01"),),
    )  # fmt: skip
    monkeypatch.setattr(module, "RESOURCES", {"big": big})
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path / "cache"))
    done = call("fetch", "big")
    assert done.exit_code == 0, done.output
    assert "licence: Terms of Test" in done.stderr
    assert (tmp_path / "cache/resources/big.txt").read_bytes() == whole


def test_environment_names_the_cache(index, tmp_path, monkeypatch):
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path / "elsewhere"))
    assert fetch("one") == tmp_path / "elsewhere" / "resources" / "one.txt"


def test_damaged_file_is_fetched_again(index, tmp_path):
    file = fetch("one", None, tmp_path)
    file.write_bytes(CONTENT["one"][:-1])
    assert fetch("one", None, tmp_path).read_bytes() == CONTENT["one"]


def test_other_content_than_pinned_is_not_stored(index, tmp_path, monkeypatch):
    wrong = {"one": resource("one", sha256="0" * 64)}
    monkeypatch.setattr(module, "RESOURCES", wrong)
    with pytest.raises(
        DownloadError, match=r"seedtune_test_data/one\.txt .*pinned 11000 bytes, 0000"
    ):
        fetch("one", None, tmp_path / "cache")
    assert list((tmp_path / "cache" / "resources").iterdir()) == []


def _wheel(index, write):
    file = index / "seedtune_test_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file) as wheel:
        rest = {i.filename: wheel.read(i) for i in wheel.infolist() if "one.txt" not in i.filename}
    file.unlink()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as wheel:
        write(wheel)
        for name, content in rest.items():
            wheel.writestr(name, content)
    return file


def test_a_bomb_is_unpacked_no_further_than_its_pinned_size(index, tmp_path, monkeypatch):
    member = "seedtune_test_data/one.txt"
    _wheel(index, lambda wheel: wheel.writestr(member, bytes(100 << 20)))
    seen = []
    real = zipfile.ZipExtFile.read

    def read(self, count=-1):
        block = real(self, count)
        if self.name == member:
            seen.append(len(block))
        return block

    monkeypatch.setattr(zipfile.ZipExtFile, "read", read)
    with pytest.raises(DownloadError, match=r"more bytes, SHA-256 .*nothing was stored"):
        fetch("one", None, tmp_path / "cache")
    assert sum(seen) <= 2 << 20
    assert list((tmp_path / "cache" / "resources").iterdir()) == []


def test_refused_download_says_why_and_where_to_put_the_file(index, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RESOURCES", {"one": resource("one", "seedtune-no-such-package")})
    with pytest.raises(DownloadError) as caught:
        fetch("one", None, tmp_path / "cache")
    message = str(caught.value)
    assert "seedtune-no-such-package==1.0" in message
    assert "No matching distribution" in message or "Could not find a version" in message
    assert str(tmp_path / "cache" / "resources" / "one.txt") in message
    assert "\n" not in message
    assert list((tmp_path / "cache" / "resources").iterdir()) == []


def test_wheel_without_the_file(index, tmp_path, monkeypatch):
    absent = Resource("x", resource("one").wheel, "no/such/member", "0" * 64, 1, "MIT", "x")
    monkeypatch.setattr(module, "RESOURCES", {"x": absent})
    with pytest.raises(DownloadError, match=r"cannot read no/such/member of resource x"):
        fetch("x", None, tmp_path)


def test_missing_pip_is_explained(index, tmp_path, monkeypatch):
    real = subprocess.Popen

    def without_pip(command, **options):
        script = "import sys; sys.exit('/usr/bin/python: No module named pip')"
        return real([command[0], "-c", script], **options)

    monkeypatch.setattr(subprocess, "Popen", without_pip)
    with pytest.raises(DownloadError, match="ensurepip"):
        fetch("one", None, tmp_path)


def test_unusable_cache_is_explained(index, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="set SEEDTUNE_CACHE"):
        fetch("one", None, tmp_path / "file")


def test_unknown_name_lists_the_known():
    with pytest.raises(DownloadError, match=r"unknown resource 'sst3'; known: .*sst2"):
        fetch("sst3")


def test_every_resource_is_pinned():
    for name, entry in RESOURCES.items():
        assert name == entry.name
        assert len(entry.sha256) == 64
    files = [entry.filename for entry in RESOURCES.values()]
    assert len(set(files)) == len(files)
    assert RESOURCES["boolq-train"].filename == "boolq-train.jsonl.gz"
    assert RESOURCES["smollm2-135m"].filename == "smollm2-135m.gguf"
    assert RESOURCES["gemma3-270m"].filename == "gemma3-270m.gguf"


@pytest.mark.slow
def test_real_resources_are_fetched(tmp_path):
    """The smallest real wheel, through the user's own pip settings."""
    assert fetch("chitchat", None, tmp_path).stat().st_size == 40_303_934
