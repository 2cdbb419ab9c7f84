"""When ``prepare`` makes again what it keeps, and who makes it."""

import contextlib
import os
import subprocess
import sys

from seedtune.host_tools import prepare as module


def test_the_key_follows_the_models_files(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"1234")
    job = {"model": str(tmp_path)}
    before = module._key(job)
    assert module._key(job) == before
    os.utime(weights, ns=(0, 0))
    touched = module._key(job)
    weights.write_bytes(b"12345")
    os.utime(weights, ns=(0, 0))
    assert len({before, touched, module._key(job)}) == 3
    assert module._key({"model": "org/name"}) != before


def test_of_processes_that_prepare_the_same_one_works_and_a_killed_one_is_followed(
    tiny_llama_folder, tmp_path
):
    code = (
        "import sys; from pathlib import Path\n"
        "from seedtune.host_tools.prepare import prepare\n"
        "if __name__ == '__main__':\n"
        "    say = lambda stage, done, total: print(stage, flush=True)\n"
        "    print(prepare(sys.argv[1], Path(sys.argv[2]), progress=say, to=['torch']).reused)\n"
    )
    script = tmp_path / "prepare_it.py"
    script.write_text(code)

    def begun(stage, at_the_end):
        command = [sys.executable, str(script), str(tiny_llama_folder), str(tmp_path / "made")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        at_the_end.callback(process.kill)
        assert process.stdout is not None
        assert process.stdout.readline().startswith(stage)
        return process

    with contextlib.ExitStack() as at_the_end:
        killed = begun("load", at_the_end)
        others = [begun("wait for another process", at_the_end) for _ in range(2)]
        killed.kill()
        killed.communicate()
        said = [process.communicate()[0].splitlines() for process in others]
    assert sorted(each[-1] for each in said) == ["False", "True"]
    assert sorted("quantise" in each for each in said) == [False, True]
