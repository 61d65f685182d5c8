"""Incidents played again in virtual time: July 31 of 2012, and others of its kind."""
