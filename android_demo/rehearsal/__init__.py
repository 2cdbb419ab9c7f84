"""The app without Android: ExecuTorch's Android classes and library on a JVM of Linux."""
