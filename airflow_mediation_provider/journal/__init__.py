"""The journal: all that was learned of sessions, in four tables of Airflow's metadata database."""
