"""From the eager program to an ExecuTorch file."""
