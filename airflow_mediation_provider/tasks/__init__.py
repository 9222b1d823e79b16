"""Shared by the tasks in all processes: arguments, kept state, making a wait, and maintenance passes."""
