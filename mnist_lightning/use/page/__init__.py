"""The page that `export digits.html` writes: one HTML file that reads digits in a browser."""
