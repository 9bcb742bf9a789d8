"""Measure speed and memory; the tests run these programs, but check no time that they report."""
