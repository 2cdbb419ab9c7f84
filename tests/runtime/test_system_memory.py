"""What is left is the least of the machine's and of every control group's, in both layouts."""

import sys

import pytest
from seedtune.runtime.engines import memory
from seedtune.runtime.engines.memory import available_bytes, peak_resident_bytes, resident_bytes

MB = 10**6


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_this_process_holds_some_and_the_machine_has_some():
    assert MB < resident_bytes() <= peak_resident_bytes() < 10**12
    assert MB < available_bytes() < 10**14


def groups(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def left(root, own):
    (root / "own").write_text(own)
    return list(memory._left_in_groups(root, root / "own"))


def test_the_second_layout_counts_every_level(tmp_path):
    groups(
        tmp_path,
        {
            "memory.max": "max",
            "memory.current": "9",
            "app/memory.max": f"{900 * MB}",
            "app/memory.current": f"{100 * MB}",
            "app/memory.stat": f"anon 5\nactive_file 7\ninactive_file {30 * MB}\n",
            "app/run/memory.max": f"{500 * MB}",
            "app/run/memory.current": f"{100 * MB}",
        },
    )
    assert sorted(left(tmp_path, "0::/app/run\n")) == [400 * MB, 830 * MB]
    assert left(tmp_path, "0::/\n") == []


def test_the_first_layout_and_a_path_of_the_host(tmp_path):
    groups(
        tmp_path,
        {
            "memory/memory.limit_in_bytes": f"{300 * MB}",
            "memory/memory.usage_in_bytes": f"{200 * MB}",
            "memory/memory.stat": f"cache 3\ntotal_inactive_file {50 * MB}\n",
        },
    )
    assert left(tmp_path, "5:cpu,memory:/docker/abc\n3:cpuset:/\n0::/\n") == [150 * MB]


def test_no_groups_at_all(tmp_path):
    assert list(memory._left_in_groups(tmp_path, tmp_path / "none")) == []
