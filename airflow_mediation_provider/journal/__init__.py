"""The journal: all reports about sessions that were received, in tables of Airflow's metadata database."""
