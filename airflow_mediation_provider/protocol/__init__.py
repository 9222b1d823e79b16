"""What Zuora Mediation says and what it proves, without I/O: no Airflow, no sockets, no clock of its own."""
