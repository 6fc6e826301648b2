"""``python -m tasks FOLDER``: writes a checksum manifest of a folder, with one durable job for each file."""
