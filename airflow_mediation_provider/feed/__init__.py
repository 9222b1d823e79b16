"""The client of the API server: the feed of session changes for workers and triggerers, and the reports of tasks."""
