"""Sources to updates and back: files, folders, state dicts and live models."""
