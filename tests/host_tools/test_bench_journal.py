"""``bench journal`` on a small run; the figures of the full one are in the issue."""

from seedtune.host_tools.bench.journal import bench_journal


def test_it_reports_what_it_promises():
    found = bench_journal(entries=1000, steps=300, large=10_000)
    assert found["replay_equal"] is True
    assert 300 * 4 < found["bytes_20000_steps"] < 300 * 4 + 1200
    assert found["replay_seconds"] > 0 and found["noise_ms_per_probe"] > 0
