"""The command line: one file per command, `flags` for all flags, `main` for the list."""
