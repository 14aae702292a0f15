"""The world that a line changes: trees, users, files, access control lists, streams."""
