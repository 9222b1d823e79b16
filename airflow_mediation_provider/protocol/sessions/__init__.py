"""The session model: the fold of reports, phases, verdicts of tasks, windows, and the JSON forms of sessions."""
