"""What breaks: storage behind a faulty wire, damaged files, killed processes. Importable, for its child processes."""
