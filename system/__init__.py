"""The process and its machine: errors, files, downloads, device and ranks, signals."""
