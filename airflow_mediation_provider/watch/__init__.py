"""The watch: whatever waits in one process for the sessions of one tenant asks once, together."""
