"""Zuora's callouts (webhooks): their settings, verification, parsing, history, and set-up in Zuora."""
