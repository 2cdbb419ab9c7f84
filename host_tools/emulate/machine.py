"""A whole arm64 machine under qemu, with the memory of a phone and seedtune's runtime in it.

It has a kernel and memory of its own, which qemu's user mode has not: what does not fit is killed.
Each run boots it, runs one command and powers it off. The guest sees folders of the host over 9p at
paths of its own; only those named writable can change.
"""

import shlex
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .host import CPU, EmulatorError, Progress, follow_command, need_packages, quiet
from .system import (
    MODULES,
    PYTHON,
    build_engine,
    bytecode_folder,
    device_packages,
    pack_initramfs,
    packages_of,
    prepare_kernel,
    prepare_sysroot,
)

PYTHON_PATH = f"/usr/bin/python{PYTHON}"
"""Python inside the guest."""

MEMORY = 1 << 30
"""Bytes of the machine."""
_ENVIRONMENT = {
    "PATH": "/applets:/usr/bin",
    "PYTHONPATH": "/packages",
    "PYTHONPYCACHEPREFIX": "/cache/bytecode",
    "SEEDTUNE_CACHE": "/cache",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# Debian's default backs every large allocation with huge pages, used or not; Android's does not.
_KERNEL_OPTIONS = "console=ttyAMA0 quiet panic=-1 transparent_hugepage=madvise"
_CONTROL = "/control"


@dataclass(frozen=True)
class Finished:
    """How a command in the machine ended."""

    status: int
    """Its exit status; 137 if it was killed."""
    boot_seconds: float
    """From the start of qemu until the command started."""
    seconds: float
    """From the start of the command until the machine was off."""
    console: list[str]
    """Last lines of the machine's console, which has what the command printed."""


class Machine:
    """The emulated machine, ready to boot."""

    def __init__(self, progress: Progress = quiet, wheel: Path | None = None) -> None:
        """Prepare sysroot, kernel and engine in the cache, where they are not there yet.

        Args:
            wheel: of seedtune with its engine, to install in place of the sources here.

        Raises:
            EmulatorError: a package is missing on the host, or a download fails.
            EngineUnavailable: the engine cannot be compiled.
        """
        need_packages()
        sysroot = prepare_sysroot(progress)
        self._kernel = prepare_kernel(progress)
        self._reads = {"/usr": sysroot / "usr"}
        if wheel is None:
            self._reads["/cache/engines"] = build_engine(sysroot).parent
            self._reads["/packages"] = device_packages()
        else:
            self._reads["/packages"] = packages_of(wheel)
        self._writes = {"/cache/bytecode": bytecode_folder()}

    def run(
        self,
        command: Sequence[str],
        *,
        reads: Mapping[str, Path],
        writes: Mapping[str, Path],
        timeout: float,
        console: Callable[[str], None] = quiet,
    ) -> Finished:
        """Boot, run ``command`` as root in the guest and power off.

        Nothing of the machine outlives the call, nor this process if it is killed.

        Args:
            reads: folders of the host by their absolute paths in the guest, read-only there.
            writes: folders that the guest may change.
            timeout: seconds for all of it.
            console: called with each line of the machine's console as it comes.

        Raises:
            EmulatorError: qemu fails, the guest's kernel killed a process for want of memory, the
                time is over, or the machine went down before the command ended.
        """
        with tempfile.TemporaryDirectory(prefix="seedtune.machine.") as name:
            control = Path(name)
            reads = {**self._reads, **reads}
            writes = {**self._writes, **writes, _CONTROL: control}
            initramfs = control / "initramfs"
            initramfs.write_bytes(self._initramfs(command, reads, writes))
            began = time.time()  # not monotonic: compared with the times of files
            qemu = self._qemu(initramfs, [*reads.values()], [*writes.values()])
            failed, tail = follow_command(qemu, timeout=timeout, line=console)
            ended = time.time()
            last = tail[-1] if tail else "nothing"
            if failed:
                raise EmulatorError(f"qemu-system-aarch64 failed ({failed}): {last}")
            try:
                status = int((control / "status").read_text())
                started = (control / "started").stat().st_mtime
                kills = int((control / "oom_kills").read_text())
            except (OSError, ValueError):
                raise EmulatorError(
                    f"the machine went down before the command ended; its last line: {last}"
                ) from None
        if kills:
            raise EmulatorError(
                f"the machine's kernel killed {kills} process(es) for want of memory "
                f"({MEMORY >> 20} MB); exit status {status}"
            )
        return Finished(status, started - began, ended - started, tail)

    def _initramfs(
        self, command: Sequence[str], reads: Mapping[str, Path], writes: Mapping[str, Path]
    ) -> bytes:
        mounts = [(path, f"r{n}", "ro,cache=loose") for n, path in enumerate(reads)]
        mounts += [(path, f"w{n}", "rw,cache=none") for n, path in enumerate(writes)]
        lines = [
            "#!/applets/busybox sh",
            "/applets/busybox --install -s /applets",
            *(f"export {key}={value}" for key, value in _ENVIRONMENT.items()),
            "mount -t proc proc /proc",
            "mount -t sysfs sys /sys",  # XNNPACK counts the cores there
            "mount -t devtmpfs dev /dev",
            "mount -t tmpfs tmp /tmp",
            *(f"insmod /modules/{name}.ko" for name in MODULES),
        ]
        for path, tag, options in mounts:
            options = f"trans=virtio,version=9p2000.L,msize=524288,{options}"
            lines.append(f"mkdir -p {shlex.quote(path)}")
            lines.append(f"mount -t 9p -o {options} {tag} {shlex.quote(path)}")
        lines += [
            f"touch {_CONTROL}/started",
            shlex.join(command),
            "status=$?",
            f"sed -n 's/^oom_kill //p' /proc/vmstat > {_CONTROL}/oom_kills",
            f"echo $status > {_CONTROL}/status",
            "poweroff -f",
        ]
        files = {"init": ("\n".join(lines).encode() + b"\n", True)}
        files["applets/busybox"] = ((self._kernel / "busybox").read_bytes(), True)
        for module in MODULES:
            content = (self._kernel / f"{module}.ko").read_bytes()
            files[f"modules/{module}.ko"] = (content, False)
        folders = ["applets", "modules", "proc", "sys", "dev", "tmp", "usr"]
        links = {name: f"usr/{name}" for name in ("bin", "lib", "lib64", "sbin")}
        return pack_initramfs(files, folders, links)

    def _qemu(self, initramfs: Path, reads: Sequence[Path], writes: Sequence[Path]) -> list[str]:
        command = ["qemu-system-aarch64", "-M", "virt"]
        command += ["-cpu", CPU, "-accel", "tcg,thread=multi,tb-size=512", "-smp", "1"]
        command += ["-m", f"{MEMORY >> 20}M", "-nodefaults", "-nographic", "-no-reboot"]
        command += ["-kernel", str(self._kernel / "vmlinuz"), "-initrd", str(initramfs)]
        command += ["-append", _KERNEL_OPTIONS, "-serial", "stdio"]
        folders = [(path, f"r{n}", ",readonly=on") for n, path in enumerate(reads)]
        folders += [(path, f"w{n}", "") for n, path in enumerate(writes)]
        for path, tag, more in folders:
            where = str(path.resolve()).replace(",", ",,")
            command.append("-virtfs")
            command.append(
                f"local,path={where},mount_tag={tag},security_model=none,multidevs=remap{more}"
            )
        return command
