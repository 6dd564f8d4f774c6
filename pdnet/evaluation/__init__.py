"""Masks become scores, tables and a report."""
