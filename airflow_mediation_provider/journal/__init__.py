"""The journal: all that was learned of sessions, in three tables of Airflow's metadata database."""
