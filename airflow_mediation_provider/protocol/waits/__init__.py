"""Waiting for a session, without I/O: the condition, what callouts and polls prove, and the stop policy."""
