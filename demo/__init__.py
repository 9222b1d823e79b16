"""A private Airflow and a simulated Zuora Mediation: the base of `make demo` and of the integration tests."""
