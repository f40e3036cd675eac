"""A web application and an execution process, joined by ipc_twisted: ``python -m examples.web_execution``."""
