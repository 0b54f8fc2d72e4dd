"""Methods side by side on the same data: a grid of methods, data and seeds, and the table that comes of it."""
