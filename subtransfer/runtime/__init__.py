"""What every other part stands on: devices and processes, signals, progress, errors, JSON files."""
