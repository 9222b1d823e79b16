"""Zuora Mediation's REST API as data: requests, replies, errors, and the flow of a call. Sends nothing itself."""
