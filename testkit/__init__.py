"""What the demo, the tests, the benchmarks and the pictures share: a private Airflow, a simulator, a database."""
