"""Servers on loopback that behave like the services which cannot run here."""
