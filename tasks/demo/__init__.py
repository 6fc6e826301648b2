"""``python -m tasks FOLDER``: a checksum manifest of a folder, made by durable jobs."""
