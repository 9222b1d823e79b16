"""A private Airflow and a simulated Zuora Mediation: what `make demo` shows and the integration tests run on."""
