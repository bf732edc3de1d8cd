"""Thin routes: read the call, ask a service, shape the answer."""
