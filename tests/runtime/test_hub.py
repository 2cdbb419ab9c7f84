"""Bundles, values, tasks and rows on the hub, against a stand-in of it and with its real client."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hub_stand_in import READER, WRITER, ask, running_hub
from seedtune.runtime import open_model
from seedtune.runtime.bundle import open_bundle, pack_bundle
from seedtune.runtime.engines import ENGINES, engines_of
from seedtune.runtime.errors import BundleError, DataError, DownloadError
from seedtune.runtime.hub import Place, local_file, place_of
from seedtune.runtime.tasks import read_rows, read_spec
from tiny_bundle import TASK, write_tiny_bundle


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("made") / "bundle")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """With an empty cache, and nobody logged in."""
    import huggingface_hub.file_download as client

    monkeypatch.setattr(client.time, "sleep", lambda _: None)  # between its attempts
    monkeypatch.setattr(client.constants, "DOWNLOAD_CHUNK_SIZE", 50)  # what it keeps of a part
    with running_hub() as found:
        ask(monkeypatch, found, tmp_path / "hf")
        yield found


def refused(source, call=local_file):
    """The error's one line, which names the place."""
    with pytest.raises(DownloadError) as caught:
        call(source)
    told = str(caught.value)
    assert told.startswith(source.partition("@")[0].removesuffix("/")) and "\n" not in told
    return told


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("hf://me/tuned", Place("model", "me/tuned")),
        ("hf://me/tuned@v1", Place("model", "me/tuned", "v1")),
        ("hf://me/tuned@v1/a/b.seedtune", Place("model", "me/tuned", "v1", "a/b.seedtune")),
        ("hf://datasets/me/rows/train.csv", Place("dataset", "me/rows", None, "train.csv")),
        ("hf://datasets/me/rows@refs/pr/3/a", Place("dataset", "me/rows", "refs/pr/3", "a")),
    ],
)
def test_places_are_read_and_written_alike(text, place):
    assert place_of(text) == place_of(Path(text)) == place  # a Path loses a slash
    assert str(place) == text


@pytest.mark.parametrize("path", ["a/b", "/a", "-", "", "C:\\a", "hf", "datasets/a/b"])
def test_other_paths_are_no_places(path):
    assert place_of(path) is None and local_file(path) == Path(path)


@pytest.mark.parametrize(
    "text", ["hf://", "hf://name", "hf://datasets/name", "hf://me/a b", "hf://me/a@"]
)
def test_what_begins_as_a_place_and_is_none_is_refused(text):
    with pytest.raises(DownloadError, match="must be hf://owner/name or hf://datasets/owner/name"):
        place_of(text)
    with pytest.raises(DownloadError, match="is a space; give a model, bundle or dataset"):
        place_of("hf://spaces/me/app")
    with pytest.raises(DownloadError, match="must not go up"):
        place_of("hf://me/tuned/../../other")


def test_a_bundle_is_pulled_part_by_part_and_nothing_else(hub, made, tmp_path):
    hub.add("models/me/tuned", made.path).files.update({"huge.bin": b"", "README.md": b"Hello"})
    found = open_bundle("hf://me/tuned")
    assert found.sha256 == made.sha256 and found.path.is_relative_to(tmp_path / "hf")
    assert {file.name for file in found.path.iterdir()} == {
        "manifest.json",
        *made.manifest["parts"],
    }
    assert not hub.gets("huge.bin") and not hub.gets("README.md")
    hub.asked.clear()
    with open_model(Path("hf://me/tuned"), sha256=made.sha256) as model:
        assert model.bundle.sha256 == made.sha256
    assert not [path for method, path, _ in hub.asked if method == "GET" and "/resolve/" in path]


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "executorch-java"])
def test_every_engine_runs_a_bundle_in_the_hub_s_cache(hub, reach, name):
    modules = {which: module for which, module, _ in engines_of(reach)}
    if (reason := modules[name].unavailable()) is not None:
        pytest.skip(reason)
    hub.add("models/me/tuned", reach.path)
    row = {"text": "a dull plot"}
    answers = []
    for bundle in ("hf://me/tuned", reach):
        with open_model(bundle, engine=name, task=TASK) as model:
            answers.append(model.predict(row))
    assert answers[0] == answers[1]


def test_a_bundle_s_one_file_form_is_pulled_and_packed(hub, made, tmp_path, monkeypatch):
    monkeypatch.setenv("SEEDTUNE_CACHE", str(tmp_path / "own"))
    file = pack_bundle(made.path, tmp_path / "b.seedtune")
    hub.add("models/me/packed", {"small/b.seedtune": file.read_bytes()})
    assert open_bundle("hf://me/packed/small/b.seedtune").sha256 == made.sha256
    assert "there are: small/b.seedtune" in refused("hf://me/packed", open_bundle)
    hub.add("models/me/tuned", made.path)
    assert pack_bundle("hf://me/tuned", tmp_path / "c.seedtune").read_bytes() == file.read_bytes()


def test_a_revision_is_one_and_all_parts_are_of_it(hub, made, tmp_path):
    other = write_tiny_bundle(tmp_path / "other", task=None)
    repository = hub.add("models/me/tuned", made.path)
    first = repository.names["v1"] = repository.names["main"]
    repository.commit({file.name: file.read_bytes() for file in other.path.iterdir()})
    assert open_bundle("hf://me/tuned").sha256 == other.sha256
    for revision in ("v1", first):
        assert open_bundle(f"hf://me/tuned@{revision}").sha256 == made.sha256
    assert "no such revision: check what" in refused("hf://me/tuned@v2", open_bundle)


def test_another_bundle_than_asked_for_is_not_downloaded(hub, made):
    hub.add("models/me/tuned", made.path)
    with pytest.raises(BundleError, match="get it again from where you got that hash"):
        open_bundle("hf://me/tuned", sha256="0" * 64)
    assert hub.gets("manifest.json") and not hub.gets("program.pte")


@pytest.mark.parametrize("name", ["manifest.json", "program.pte", "values.safetensors"])
def test_a_bundle_from_the_hub_is_checked_as_any_other(hub, made, name):
    files = hub.add("models/me/tuned", made.path).files
    files[name] = files[name][:-20] + b"x" * 20
    with pytest.raises(BundleError, match=name):
        open_bundle("hf://me/tuned")


def test_rows_tasks_and_values_are_read_from_the_hub(hub, made, tmp_path):
    rows = [{"text": 'ünïcode, "odd"', "label": "1"}, {"text": "", "label": "0"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    hub.add("datasets/me/rows", {"data/train.jsonl": lines, "a.csv": "text,label\nb,0\n"})
    assert read_rows("hf://datasets/me/rows/data/train.jsonl") == rows
    assert read_rows(Path("hf://datasets/me/rows/a.csv")) == [{"text": "b", "label": "0"}]
    for place in ("hf://datasets/me/rows", "hf://datasets/me/rows/data"):
        assert "there are: a.csv, data/train.jsonl" in refused(place, read_rows)
    with open_model(made) as model:
        model.save(tmp_path / "tuned.safetensors")
    values = (tmp_path / "tuned.safetensors").read_bytes()
    hub.add(
        "models/me/run",
        {"tuned.safetensors": values, "task.json": json.dumps(TASK), "a.json": "{}"},
    )
    assert read_spec("hf://me/run/task.json") == TASK
    with open_model(made, task="hf://me/run/task.json") as model:
        model.load("hf://me/run/tuned.safetensors")
    with pytest.raises(DataError, match=r"a\.json: task: field 'kind' is missing"):
        read_spec("hf://me/run/a.json")


def test_who_may_not_read_is_told_what_to_do(hub, monkeypatch):
    hub.add("datasets/me/secret", {"a.csv": "text\na\n"}, private=True)
    hub.add("datasets/me/gated", {"a.csv": "text\na\n"}, gated=True)
    secret, gated = "hf://datasets/me/secret/a.csv", "hf://datasets/me/gated/a.csv"
    no_such = "no such repository, or a private one: check the name, or type 'hf auth login'"
    assert no_such in refused(secret) and no_such in refused("hf://datasets/me/none/a.csv")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "the hub does not know the token: type 'hf auth login'" in refused(secret)
    monkeypatch.setenv("HF_TOKEN", READER)
    assert local_file(secret).read_text() == "text\na\n"
    assert no_such in refused("hf://datasets/me/none/a.csv")
    assert f"ask for access at {hub.url}/datasets/me/gated" in refused(gated)
    assert "no such file; there are: a.csv" in refused("hf://datasets/me/secret/b.csv")


def test_a_lost_connection_is_taken_up_where_it_broke(hub, made):
    hub.add("models/me/tuned", made.path)
    hub.cuts["program.pte"] = [100, 50]
    assert open_bundle("hf://me/tuned").sha256 == made.sha256
    ranges = [headers.get("range") for headers in hub.gets("program.pte")]
    assert ranges == [None, "bytes=100-", "bytes=150-"]


def test_half_a_download_is_never_taken_for_a_whole(hub, made, tmp_path, monkeypatch):
    hub.add("models/me/tuned", made.path)
    hub.cuts["program.pte"] = [100, *[0] * 20]
    told = refused("hf://me/tuned", open_bundle)
    assert "without sending complete message body" in told
    assert "check the connection and try again" in told
    assert not list((tmp_path / "hf").rglob("*.incomplete"))
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, and not all of it is in the cache: unset it" in refused(
        "hf://me/tuned", open_bundle
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.cuts.clear()
    hub.asked.clear()
    assert open_bundle("hf://me/tuned").sha256 == made.sha256
    assert hub.gets("program.pte") and not hub.gets("manifest.json")  # which came whole


def test_what_is_cached_opens_without_a_hub(hub, made, monkeypatch):
    from huggingface_hub import constants

    hub.add("models/me/tuned", made.path)
    hub.add("datasets/me/rows", {"a.csv": "text\na\n"})
    places = ("hf://me/tuned", "hf://datasets/me/rows/a.csv")
    open_bundle(places[0]), local_file(places[1])
    hub.status = 503
    assert open_bundle(places[0]).sha256 == made.sha256 and local_file(places[1]).is_file()
    assert "status 503: try again later" in refused("hf://me/other", open_bundle)
    hub.status = None
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert open_bundle(places[0]).sha256 == made.sha256 and local_file(places[1]).is_file()
    assert "HF_HUB_OFFLINE is set" in refused("hf://me/other", open_bundle)
    assert hub.asked == []


def test_no_hub_where_one_is_said_to_be(hub, monkeypatch):
    from huggingface_hub import constants

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(hub.url, "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    assert "check the connection and try again" in refused("hf://me/tuned", open_bundle)
    assert "check the connection and try again" in refused("hf://datasets/me/rows/a.csv")


def test_a_cache_that_cannot_be_written_is_named(hub, tmp_path):
    hub.add("datasets/me/rows", {"a.csv": "text\na\n"})
    (tmp_path / "hf").write_text("in the way")
    told = refused("hf://datasets/me/rows/a.csv")
    assert "cannot be kept here (" in told and "set HF_HOME to another folder" in told


def test_without_the_client_one_is_told_what_to_install(tmp_path):
    script = (
        "import sys\n"
        "sys.modules['huggingface_hub'] = None\n"
        "from seedtune.runtime import SeedtuneError, open_model\n"
        "try:\n"
        "    open_model('hf://me/tuned')\n"
        "except SeedtuneError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "hf://me/tuned: needs huggingface_hub: pip install 'seedtune[hub]'\n"


def test_the_hub_learns_no_more_than_it_is_asked_for(hub, made, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", WRITER)
    hub.add("models/me/tuned", made.path)
    open_bundle("hf://me/tuned")
    assert hub.asked
    for _, path, headers in hub.asked:
        assert "me/tuned" in path
        assert "torch" not in headers["user-agent"] and "session_id" not in headers["user-agent"]
