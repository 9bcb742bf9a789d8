"""What is made of finished runs: records, tables and pictures."""
