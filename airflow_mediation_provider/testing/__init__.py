"""What the fixtures of the pytest plugin use: ``docs/testing.md`` is their page. No product code imports it."""
