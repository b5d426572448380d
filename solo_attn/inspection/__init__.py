"""What a data set is, what a grid setting makes of it, and what to propose."""
