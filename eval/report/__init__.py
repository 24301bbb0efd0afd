"""What people read: the table in the terminal, as CSV and LaTeX, and the page."""
