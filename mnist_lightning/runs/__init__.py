"""What a run keeps, and how it goes on."""
