"""Operators: start, stop and branch on meter sessions, and read their audit trail."""
