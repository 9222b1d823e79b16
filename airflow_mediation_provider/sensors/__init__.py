"""Sensors that wait for meter sessions."""
