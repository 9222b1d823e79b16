"""Triggers that wait for meter sessions in the triggerer."""
