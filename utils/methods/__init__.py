"""What is compared, and the comparison."""
