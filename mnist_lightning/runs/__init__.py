"""What a run keeps, and how it continues."""
