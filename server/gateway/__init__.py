"""The gateway: OpenAI's routes in front of an engine, the admin API, health and metrics."""
