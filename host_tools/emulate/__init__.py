"""An arm64 device without hardware: Debian's user space and the aarch64 wheels under qemu."""
