"""The hook: a connection to one Zuora tenant and the Mediation calls, sync and async."""
