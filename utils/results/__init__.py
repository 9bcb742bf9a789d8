"""What follows a run: its record, tables and pictures."""
