"""What the commands of ``airflow mediation`` do; each module is loaded when one of its commands is run."""
