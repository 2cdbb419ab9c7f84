"""``seedtune push-android``, with a phone that is a folder and an ``adb`` that is a script."""

import os
from pathlib import Path

import pytest
from command_line import bad, call, good
from seedtune.runtime.bundle import open_bundle, pack_bundle
from tiny_bundle import write_tiny_bundle

ADB = """#!/bin/sh
echo "$1" >> "$PHONE/log"
[ "$1" = -s ] && shift 2
case "$1" in
  push) cp "$2" "$PHONE$3" ;;
  shell)
    shift; cd "$PHONE/data/app"
    eval "$(echo "$*" | sed "s#/data/local#$PHONE/data/local#g")" ;;
esac
"""
RUN_AS = """#!/bin/sh
[ "$1" = org.seedtune.demo ] || { echo "run-as: unknown package: $1" >&2; exit 1; }
shift
exec "$@"
"""


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("adb", ADB), ("run-as", RUN_AS)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    phone = tmp_path / "phone"
    (phone / "data/local/tmp").mkdir(parents=True)
    (phone / "data/app").mkdir()
    monkeypatch.setenv("PHONE", str(phone))
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    return phone


@pytest.mark.parametrize("packed", [False, True])
def test_the_bundle_arrives_whole_where_the_app_looks(
    phone: Path, tmp_path: Path, packed: bool
) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    given = bundle.path
    if packed:
        given = tmp_path / "b.seedtune"
        pack_bundle(bundle.path, given)
    found = good("push-android", given, "--run", "--serial", "emulator-5554")
    assert found == {"pushed": bundle.sha256}
    (arrived,) = (phone / "data/app/files/incoming").iterdir()
    assert arrived.name == "pushed.seedtune"
    assert open_bundle(arrived, cache=tmp_path / "cache").sha256 == bundle.sha256
    assert not list((phone / "data/local/tmp").iterdir())
    assert (phone / "log").read_text().split() == ["-s"] * 3


def test_commands_are_shown_each_on_one_line(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "b")
    lines = call("push-android", bundle.path).stdout.strip().splitlines()
    assert len(lines) == 4
    assert lines[0] == f"seedtune pack {bundle.path} model.seedtune"
    assert lines[1] == "adb push model.seedtune /data/local/tmp/model.seedtune"
    assert "run-as org.seedtune.demo sh -c" in lines[2]
    assert good("push-android", bundle.path)["commands"] == lines


def test_failures_are_one_line(
    phone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_tiny_bundle(tmp_path / "b").path
    (tmp_path / "bin/run-as").write_text("#!/bin/sh\necho 'run-as: unknown package' >&2; exit 1\n")
    assert "run-as: unknown package; is the app installed" in bad(
        1, "push-android", bundle, "--run"
    )
    (bundle / "program.pte").write_bytes(b"x")
    assert "program.pte" in bad(4, "push-android", bundle)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "program.pte" in bad(4, "push-android", bundle, "--run")
    whole = write_tiny_bundle(tmp_path / "c").path
    assert bad(1, "push-android", whole, "--run").startswith("adb is not installed")
