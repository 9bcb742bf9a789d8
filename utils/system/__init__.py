"""The basis of every process: errors, arguments, signals, devices, ranks."""
