"""What a process stands on: errors, arguments, signals, devices, ranks."""
