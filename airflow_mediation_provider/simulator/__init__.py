"""A stand-in for Zuora Mediation that anybody can run: tests, demos, the CI of users."""
