"""Zuora Mediation's messages and what they prove, without I/O: no Airflow, no sockets, no clock of its own."""
